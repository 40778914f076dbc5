"""The rows of a decode batch, and whose they are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from lm.generation import Response, Stop
from services.policy.interface import Generated, Generation, Version


@dataclass(frozen=True)
class BatchLimits:
    """How large a decode batch may be; a larger request runs in several."""

    rows: int = 64
    tokens: int = 1 << 16
    """Rows × the longest prompt with its response: bounds the key-value cache."""


@dataclass(eq=False, kw_only=True)
class Row(Response):
    """A response that knows its request and the weights that made it."""

    owner: Generation
    prompt_index: int
    steps: list[tuple[int, int]] = field(default_factory=list)
    """(step of the weights, first token they made), oldest first."""

    def note_step(self, version: Version) -> None:
        """The tokens from here on are made by these weights."""
        self.steps.append((version.step, len(self.token_ids)))

    @property
    def most_tokens(self) -> int:
        """Tokens of the prompt and the longest possible response."""
        return len(self.prompt_ids) + self.stop.max_new_tokens

    @property
    def version_spans(self) -> tuple[tuple[int, int, int], ...]:
        """(step, start, end) stretches that cover the response."""
        ends = [start for _, start in self.steps[1:]] + [len(self.token_ids)]
        spans = [(step, start, end) for (step, start), end in zip(self.steps, ends, strict=True)]
        return tuple(span for span in spans if span[1] < span[2])

    def generated(self, text: str) -> Generated:
        """The finished response, whose text is `text`."""
        assert self.finish is not None
        return Generated(
            prompt_index=self.prompt_index,
            sample_index=self.sample_index,
            token_ids=tuple(self.token_ids),
            text=text,
            finish=self.finish.value,
            logprobs=tuple(self.logprobs),
            logprobs_temperature_1=tuple(self.logprobs_temperature_1),
            version_spans=self.version_spans,
            seed=self.seed,
        )


def rows_of(generation: Generation) -> list[Row]:
    """One row for each prompt and sample of a request."""
    request = generation.request
    stop = Stop(request.max_new_tokens, request.stop_token_ids, request.stop_strings)
    return [
        Row(ids, seed, sample, stop, owner=generation, prompt_index=index)
        for index, (ids, seed) in enumerate(zip(request.prompts, request.seeds, strict=True))
        for sample in range(request.samples_per_prompt)
    ]


def cut(rows: Sequence[Row], limits: BatchLimits) -> Iterator[list[Row]]:
    """Batches within the limits, prompts of like length together; depends on the rows and limits only."""
    batch: list[Row] = []
    widest = 0
    for row in sorted(rows, key=lambda row: len(row.prompt_ids)):
        widest = max(widest, row.most_tokens)
        full = len(batch) == limits.rows or (len(batch) + 1) * widest > limits.tokens
        if batch and full:
            yield batch
            batch, widest = [], row.most_tokens
        batch.append(row)
    if batch:
        yield batch
