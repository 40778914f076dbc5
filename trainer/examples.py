"""Records as token ids. What is too long is dropped and counted, never cut: a cut loses question or EOS."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from trainer.data import Context, Demonstration, Ranking
from trainer.errors import ConfigError
from trainer.progress import track


@dataclass(frozen=True)
class Limits:
    """Most tokens."""

    prompt: int
    total: int
    """Of prompt, completion and EOS."""

    @classmethod
    def within(cls, context_length: int, prompt: int, total: int | None, key: str) -> "Limits":
        """`total` None takes the whole context. Raises ConfigError naming `key` if it is more than that."""
        if total is not None and total > context_length:
            raise ConfigError.at(key, f"{total} is more than the model's context of {context_length} tokens")
        return cls(prompt, total or context_length)


@dataclass
class Dropped:
    """How many records were left out, by reason."""

    long_prompts: int = 0
    long_completions: int = 0
    only_ties: int = 0

    def __str__(self) -> str:
        parts = {
            "with too long a prompt": self.long_prompts,
            "with too long a completion": self.long_completions,
            "in which everything ties": self.only_ties,
        }
        return ", ".join(f"{count} {what}" for what, count in parts.items() if count) or "none"


@dataclass(frozen=True)
class Example:
    """Ids of a prompt and its completion with EOS; `start` is the index of the completion's first token."""

    token_ids: tuple[int, ...]
    start: int

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class RankedExamples:
    """All completions of one prompt with their ranks: one element of a reward model's batch."""

    examples: tuple[Example, ...]
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class PromptIds:
    """A prompt with its ids; `index` counts the file's prompts from 0, dropped ones too."""

    index: int
    context: Context
    token_ids: tuple[int, ...]


def encode_demonstrations(
    records: Sequence[Demonstration], tokenizer: PreTrainedTokenizerBase, limits: Limits
) -> tuple[list[Example], Dropped]:
    """Prompt + completion + EOS of each record that fits. Raises DataError."""
    examples, dropped = [], Dropped()
    for record in track(records, "tokenising demonstrations"):
        prompt = record.context.encode(tokenizer)
        if len(prompt) > limits.prompt:
            dropped.long_prompts += 1
            continue
        turns = len(record.context.messages)
        field = f"messages[{turns}].content" if turns else "completion"
        example = _example(record.context, prompt, record.completion, field, tokenizer)
        if len(example) > limits.total:
            dropped.long_completions += 1
            continue
        examples.append(example)
    return examples, dropped


def encode_rankings(
    records: Sequence[Ranking], tokenizer: PreTrainedTokenizerBase, limits: Limits
) -> tuple[list[RankedExamples], Dropped]:
    """The records that fit and order anything; a ranking is dropped whole. Raises DataError."""
    rankings, dropped = [], Dropped()
    for record in track(records, "tokenising rankings"):
        prompt = record.context.encode(tokenizer)
        examples = tuple(
            _example(record.context, prompt, completion, f"completions[{index}]", tokenizer)
            for index, completion in enumerate(record.completions)
        )
        if len(prompt) > limits.prompt:
            dropped.long_prompts += 1
        elif max(map(len, examples)) > limits.total:
            dropped.long_completions += 1
        elif len(set(record.ranks)) == 1:
            dropped.only_ties += 1
        else:
            rankings.append(RankedExamples(examples, record.ranks))
    return rankings, dropped


def encode_prompts(
    records: Sequence[Context], tokenizer: PreTrainedTokenizerBase, most: int
) -> tuple[list[PromptIds], Dropped]:
    """The prompts of at most `most` tokens. Raises DataError."""
    prompts, dropped = [], Dropped()
    for index, context in enumerate(track(records, "tokenising prompts")):
        ids = context.encode(tokenizer)
        if len(ids) > most:
            dropped.long_prompts += 1
        else:
            prompts.append(PromptIds(index, context, tuple(ids)))
    return prompts, dropped


LENGTH_COLUMNS = ("tokens", "count", "least", "median", "95 %", "most", "in all")


def length_row(name: str, lengths: Sequence[int]) -> tuple[str, int, int, int, int, int, int]:
    """Statistics of `lengths` under LENGTH_COLUMNS; at least one length."""
    ordered = sorted(lengths)
    count = len(ordered)
    quantiles = ordered[0], ordered[count // 2], ordered[(count * 95) // 100], ordered[-1]
    return (name, count, *quantiles, sum(ordered))


def _example(
    context: Context, prompt: Sequence[int], completion: str, field: str, tokenizer: PreTrainedTokenizerBase
) -> Example:
    ids = context.encode_completion(tokenizer, completion, field)
    return Example((*prompt, *ids), len(prompt))
