"""The decode loop: a batch of responses grows by one token a step, over a key-value cache.

A sampled token depends on (seed, sample index, position) and the model only; the rows of a batch
share nothing but its arithmetic. Whoever holds a batch may do anything between two steps: drop
rows, stop, or change the model's weights and call `void_cache`.

Shapes: B rows, L prompt + response tokens (left-padded), H hidden size, V vocabulary.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

import torch
from torch import Tensor
from transformers import Cache

from lm.cache import can_cut_left, cut_left, decode_mask, new_cache, select_rows
from lm.loading import LoadedLM
from lm.logprobs import logits_from_hidden
from lm.padding import left_pad
from lm.sampling import sample, uniform
from lm.tokenizer import decode


class Finish(Enum):
    """Why a response ended."""

    EOS = "eos"
    STOP_TOKEN = "stop_token"
    STOP_STRING = "stop_string"
    LENGTH = "length"


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; all rows of a batch share it. See lm.sampling.sample."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class Stop:
    """When a response ends, beside the model's own end-of-sequence ids. The cause stays in the response."""

    max_new_tokens: int
    token_ids: frozenset[int] = frozenset()
    strings: tuple[str, ...] = ()


@dataclass(eq=False)
class Response:
    """One response as it grows."""

    prompt_ids: tuple[int, ...]
    seed: int
    sample_index: int
    stop: Stop
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """Of the distribution each token was drawn from."""
    logprobs_temperature_1: list[float] = field(default_factory=list)
    """Over the whole vocabulary at temperature 1."""
    finish: Finish | None = None
    """None while it grows."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Prompt and response."""
        return (*self.prompt_ids, *self.token_ids)


R = TypeVar("R", bound=Response)


class DecodeBatch(Generic[R]):
    """Responses that grow together until each has ended."""

    def __init__(self, loaded: LoadedLM, sampling: Sampling, responses: Sequence[R]) -> None:
        self._loaded = loaded
        self._model = loaded.model
        self._sampling = sampling
        self._rows = list(responses)
        self._cache: Cache | None = None

    @property
    def responses(self) -> tuple[R, ...]:
        """Those that still grow."""
        return tuple(self._rows)

    @torch.inference_mode()
    def step(self) -> list[R]:
        """Gives every response one more token; returns those that ended with it, which leave the batch.

        Raises lm.sampling.NotFinite.
        """
        logits_BV = self._prefill() if self._cache is None else self._advance(self._cache)
        uniforms = [uniform(row.seed, row.sample_index, len(row.token_ids)) for row in self._rows]
        uniforms_B = torch.tensor(uniforms, dtype=torch.float64).to(logits_BV.device)
        how = self._sampling
        ids_B, logprobs_B, logprobs_1_B = sample(logits_BV, uniforms_B, how.temperature, how.top_k, how.top_p)
        self._last_ids_B = ids_B
        # One transfer a step; float64 holds ids and float32 numbers exactly.
        columns = torch.stack((ids_B.double(), logprobs_B.double(), logprobs_1_B.double())).tolist()
        for row, id_, logprob, logprob_1 in zip(self._rows, *columns, strict=True):
            row.token_ids.append(int(id_))
            row.logprobs.append(logprob)
            row.logprobs_temperature_1.append(logprob_1)
            row.finish = self._finish(row)
        ended = [row for row in self._rows if row.finish is not None]
        self.drop(ended)
        return ended

    def drop(self, responses: Collection[R]) -> None:
        """Takes responses out, ended or given up; padding that no row needs any more goes with them."""
        gone = {id(row) for row in responses}
        kept = _close_gaps([id(row) not in gone for row in self._rows])
        if len(kept) == len(self._rows):
            return
        self._rows = [self._rows[index] for index in kept]
        if self._rows and self._cache is not None:
            with torch.inference_mode():
                self._shrink(self._cache, kept)
        else:
            self._cache = None

    def void_cache(self) -> None:
        """Makes the next step run all ids through the model again: its weights have changed."""
        self._cache = None

    def _prefill(self) -> Tensor:
        """logits_BV after all ids so far; equal sequences (samples of one prompt) run once."""
        sequences = [row.ids for row in self._rows]
        unique = {ids: index for index, ids in enumerate(dict.fromkeys(sequences))}
        ids_BL, mask_BL, positions_BL = left_pad(list(unique), device=self._model.device)
        self._cache = new_cache(self._model.config)
        rows_B = torch.tensor([unique[ids] for ids in sequences], device=ids_BL.device)
        padding = ids_BL.shape[1] - mask_BL.sum(dim=1)
        self._padding = padding[rows_B].tolist()
        self._mask_BL = mask_BL[rows_B]
        self._positions_B = positions_BL[rows_B, -1]
        logits_BV = self._forward(self._cache, ids_BL, positions_BL, mask_BL)
        if len(unique) == len(sequences):
            return logits_BV
        select_rows(self._cache, rows_B)
        return logits_BV[rows_B]

    def _advance(self, cache: Cache) -> Tensor:
        """logits_BV after the tokens of the last step."""
        self._positions_B = self._positions_B + 1
        self._mask_BL = torch.nn.functional.pad(self._mask_BL, (0, 1), value=1)
        mask = decode_mask(self._model, cache, self._mask_BL)
        return self._forward(cache, self._last_ids_B[:, None], self._positions_B[:, None], mask)

    def _forward(self, cache: Cache, ids_BL: Tensor, positions_BL: Tensor, mask: Tensor) -> Tensor:
        """logits_BV at the last position."""
        hidden_BLH = self._model.base_model(
            input_ids=ids_BL,
            attention_mask=mask,
            position_ids=positions_BL,
            past_key_values=cache,
            use_cache=True,
        )[0]
        return logits_from_hidden(self._model, hidden_BLH[:, -1])

    def _shrink(self, cache: Cache, kept: list[int]) -> None:
        """Keeps some rows of the cache and of what goes with it, and cuts common left padding."""
        kept_B = torch.tensor(kept, device=self._last_ids_B.device)
        select_rows(cache, kept_B)
        self._last_ids_B = self._last_ids_B[kept_B]
        self._positions_B = self._positions_B[kept_B]
        self._mask_BL = self._mask_BL[kept_B]
        self._padding = [self._padding[index] for index in kept]
        columns = min(self._padding)
        if columns and can_cut_left(cache):
            cut_left(cache, columns)
            self._padding = [padding - columns for padding in self._padding]
            self._mask_BL = self._mask_BL[:, columns:]

    def _finish(self, row: R) -> Finish | None:
        if row.token_ids[-1] in self._loaded.eos_token_ids:
            return Finish.EOS
        if row.token_ids[-1] in row.stop.token_ids:
            return Finish.STOP_TOKEN
        if row.stop.strings:
            text = decode(self._loaded.tokenizer, row.token_ids)
            if any(string in text for string in row.stop.strings):
                return Finish.STOP_STRING
        return Finish.LENGTH if len(row.token_ids) >= row.stop.max_new_tokens else None


def _close_gaps(keep: list[bool]) -> list[int]:
    """Old indices of the kept rows, in an order that moves as few as can be.

    Rows behind the new end fill the gaps before it, so that the cache copies those only.
    """
    count = sum(keep)
    tail = [index for index in range(count, len(keep)) if keep[index]]
    return [index if keep[index] else tail.pop() for index in range(count)]
