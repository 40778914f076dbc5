"""A prompt and what a policy made of it: all that judges and measures need."""

from dataclasses import dataclass

from trainer.data import Context


@dataclass(frozen=True)
class Sample:
    """One response."""

    context: Context
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """Of the response, end-of-sequence token included if there is one."""
    text: str
    logprobs: tuple[float, ...]
    """Of the sampled distribution, one per token."""
    ended: bool
    tokenizer_sha256: str
    """Of the tokenizer that the ids belong to."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Prompt and response."""
        return self.prompt_ids + self.token_ids

    @property
    def prompt(self) -> str:
        """The prompt as text; of a conversation "role: content", a line a turn."""
        if self.context.messages:
            return "\n".join(f"{role}: {content}" for role, content in self.context.messages)
        return self.context.text

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """The conversation with the response as the assistant's turn; empty for plain text."""
        return (*self.context.messages, ("assistant", self.text)) if self.context.messages else ()
