"""One policy server, at its own address: what a run asks of it, and what it must answer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from lm.digests import tensor_bytes
from lm.placement import DTYPE_NAMES
from plaudit.clients import PolicyClient, WeightsClient
from plaudit.clients.data import DType, GeneratedSequence, ModelVersion, PolicyInfo, PushManifest, TensorSpec
from plaudit.clients.errors import Aborted, FailedPrecondition, NotFound, PlauditError
from trainer.ppo.config import SamplingSection
from trainer.ppo.patience import COMES_BACK, Away, Endpoint
from trainer.ppo.roles import StaleWeights
from trainer.ppo.rollout import Prompt, Response

Named = Sequence[tuple[str, Tensor]]
"""Tensors by their names in the state dict."""

MAY_CHANGE = (*COMES_BACK, Aborted, NotFound, FailedPrecondition)
"""What ends an attempt to push and not the pushing: the replica restarted, or another push is still open."""


@dataclass(frozen=True)
class Weights:
    """What a replica must serve."""

    run_id: str
    step: int
    sha256: str

    def served_by(self, version: ModelVersion) -> bool:
        """Whether `version` is of these weights: pushed by this run, or the same from disk."""
        ours = version.run_id in ("", self.run_id)
        return ours and (version.step, version.weights_sha256) == (self.step, self.sha256)

    def __str__(self) -> str:
        return f"step {self.step} ({self.sha256[:12]})"


@dataclass(frozen=True)
class _Bytes:
    """The bytes of tensors, converted one at a time; starts again each time it is iterated."""

    tensors: Named
    dtype: torch.dtype

    def __iter__(self) -> Iterator[memoryview]:
        return (tensor_bytes(tensor.to(self.dtype)) for _, tensor in self.tensors)


class Replica:
    """A policy server behind its two clients. Safe to use from several threads."""

    def __init__(self, endpoint: Endpoint, policy: PolicyClient, weights: WeightsClient) -> None:
        self.endpoint = endpoint
        self._policy = policy
        self._weights = weights

    def describe(self, timeout: float) -> PolicyInfo:
        """All that the server says of itself. Raises PlauditError."""
        return self._policy.get_policy(timeout=timeout)

    def version(self) -> ModelVersion:
        """What is loaded. Raises Away."""
        with self._away_on(COMES_BACK):
            return self._policy.get_policy().model

    def generate(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], weights: Weights, sampling: SamplingSection
    ) -> list[Response]:
        """One response per prompt as one deterministic request. Raises Away, StaleWeights."""
        with self._away_on(COMES_BACK):
            try:
                generation = self._policy.generate(
                    [prompt.token_ids for prompt in prompts],
                    max_new_tokens=sampling.response_length,
                    temperature=sampling.temperature,
                    stop_token_ids=sampling.stop_token_ids,
                    seeds=seeds,
                    deterministic=True,
                    step_exactly=weights.step,
                )
            except FailedPrecondition as error:
                raise StaleWeights(f"{self.endpoint}: {error.reason}") from error
        spans = {span.step for sequence in generation.sequences for span in sequence.version_spans}
        model = generation.model
        if spans != {weights.step} or not weights.served_by(model):
            answered = Weights(model.run_id, model.step, model.weights_sha256)
            raise StaleWeights(f"{self.endpoint} answered with {answered}, but {weights} was pushed")
        return [_response(sequence) for sequence in generation.sequences]

    def stage(
        self, weights: Weights, base_step: int, tensors: Named, dtype: torch.dtype, take_over: bool
    ) -> str:
        """Sends `tensors` in `dtype`, to be loaded by commit or dropped by abort. Raises Away.

        `take_over`: from whichever run drives the replica.
        """
        name: DType = DTYPE_NAMES[dtype]  # type: ignore[assignment]  # the same four words
        specs = [TensorSpec(key, name, tuple(tensor.shape)) for key, tensor in tensors]
        manifest = PushManifest(weights.run_id, base_step, weights.step, specs, weights.sha256)
        with self._away_on(MAY_CHANGE):
            return self._weights.stage(manifest, _Bytes(tensors, dtype), take_over=take_over)

    def commit(self, push_id: str) -> None:
        """Loads what was staged. Raises Away, or DataLoss if the digest doesn't fit."""
        with self._away_on(MAY_CHANGE):
            self._weights.commit(push_id)

    def abort(self, push_id: str) -> None:
        """Gives up what was staged, as far as the replica can be told."""
        with suppress(PlauditError):
            self._weights.abort(push_id)

    def close(self) -> None:
        """Ends the connections."""
        self._policy.close()
        self._weights.close()

    @contextmanager
    def _away_on(self, kinds: tuple[type[PlauditError], ...]) -> Iterator[None]:
        try:
            yield
        except kinds as error:
            raise Away(self.endpoint, error) from error


def _response(sequence: GeneratedSequence) -> Response:
    return Response(
        token_ids=sequence.token_ids,
        text=sequence.text,
        logprobs=tuple(sequence.logprobs.tolist()),
        ended=sequence.ended,
        version_spans=tuple((span.step, span.start, span.end) for span in sequence.version_spans),
        seed=sequence.seed,
    )
