"""What one round of collection hands to learning: self-contained, so it can be stored, replayed or aged.

Shapes: B sequences, T response tokens (right-padded), L prompt + response tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """A prompt as the trainer holds it: ids for the policy, and its source for a reward asked in text."""

    index: int
    """Position in the prompt file."""
    token_ids: tuple[int, ...]
    text: str = ""
    """The plain prompt; empty if the prompt is a conversation."""
    messages: tuple[tuple[str, str], ...] = ()
    """(role, content) turns; empty if the prompt is plain text."""


@dataclass(frozen=True)
class Response:
    """One sampled response, as a policy returned it."""

    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[float, ...]
    """Of the sampled distribution, one per token."""
    ended: bool
    """Whether the model ended it itself, with EOS or a stop token (the server's finish reason decides)."""
    version_spans: tuple[tuple[int, int, int], ...]
    """(step, start, end) stretches that cover the response."""
    seed: int


@dataclass(frozen=True)
class Rollout:
    """A batch of prompts with their responses."""

    prompts: tuple[Prompt, ...]
    responses: tuple[Response, ...]
    response_ids_BT: Tensor
    """int64, right-padded with 0; what is real says loss_mask_BT, never an id."""
    loss_mask_BT: Tensor
    """bool, True on response tokens up to and including the last one."""
    logprobs_BT: Tensor
    """float32, the generator's log-probabilities; 0 where masked."""

    @classmethod
    def of(cls, prompts: tuple[Prompt, ...], responses: tuple[Response, ...]) -> "Rollout":
        """Pads `responses` (B of them, aligned with `prompts`) into tensors."""
        width = max(len(response.token_ids) for response in responses)
        ids_BT = torch.zeros(len(responses), width, dtype=torch.int64)
        mask_BT = torch.zeros(len(responses), width, dtype=torch.bool)
        logprobs_BT = torch.zeros(len(responses), width)
        for row, response in enumerate(responses):
            length = len(response.token_ids)
            ids_BT[row, :length] = torch.tensor(response.token_ids)
            mask_BT[row, :length] = True
            logprobs_BT[row, :length] = torch.tensor(response.logprobs)
        return cls(prompts, responses, ids_BT, mask_BT, logprobs_BT)

    def select(self, rows: list[int]) -> "Rollout":
        """The rollout of some of its sequences, for example those whose reward could be had."""
        return Rollout.of(
            tuple(self.prompts[row] for row in rows), tuple(self.responses[row] for row in rows)
        )

    @property
    def sequences(self) -> list[tuple[int, ...]]:
        """Prompt + response ids of each sequence, without padding."""
        pairs = zip(self.prompts, self.responses, strict=True)
        return [prompt.token_ids + response.token_ids for prompt, response in pairs]

    @property
    def starts(self) -> list[int]:
        """Index of the first response token in each of `sequences`."""
        return [len(prompt.token_ids) for prompt in self.prompts]

    @property
    def ended_B(self) -> Tensor:
        """bool, whether each response ended by itself."""
        return torch.tensor([response.ended for response in self.responses])

    @property
    def policy_steps(self) -> tuple[int, int]:
        """Oldest and newest step that generated any token."""
        steps = [step for response in self.responses for step, _, _ in response.version_spans]
        return min(steps), max(steps)
