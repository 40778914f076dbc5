"""The two policies of a comparison: a model loaded here, or a live service. Both sample, both are scored."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch

from lm.digests import WeightsDigest, effective_tensors
from lm.generation import DecodeBatch, Finish, Response, Sampling, Stop
from lm.loading import LoadedLM, load_causal_lm
from lm.logprobs import response_logprobs
from lm.placement import Placement
from lm.tokenizer import decode, tokenizer_sha256
from plaudit.clients import Chat, PolicyClient, ReferenceClient
from plaudit.clients.data import ModelVersion
from trainer.data import Context
from trainer.errors import ConfigError, DataError
from trainer.evaluate.config import CandidateSection, ResponsesSection
from trainer.evaluate.samples import Sample
from trainer.ppo.batches import batches
from trainer.progress import track

SCORED_TOGETHER = 16
"""Sequences in one forward pass when log-probabilities are computed here."""


class Candidate(Protocol):
    """A policy that is compared."""

    version: ModelVersion
    """The weights that are judged."""

    def sample(self, contexts: Sequence[Context], seeds: Sequence[int], what: str) -> list[Sample]:
        """One response per prompt; the same seeds give the same responses. `what` names the progress bar."""
        ...

    def prompt_lengths(self, contexts: Sequence[Context]) -> list[int] | None:
        """Tokens of each prompt; None where the policy is a service, which tokenises. Raises DataError."""
        ...

    def logprob_sums(self, samples: Sequence[Sample]) -> list[float] | None:
        """Σ_t log π of each response at the sampling temperature, in nats; None if it can't be had."""
        ...


class LocalCandidate:
    """A model loaded here."""

    def __init__(self, loaded: LoadedLM, sampling: ResponsesSection) -> None:
        self._loaded = loaded
        self._sampling = sampling
        digest = WeightsDigest(effective_tensors(loaded.model)).hexdigest()
        self.version = ModelVersion(loaded.model_id, "", 0, digest, tokenizer_sha256(loaded.tokenizer))

    def sample(self, contexts: Sequence[Context], seeds: Sequence[int], what: str) -> list[Sample]:
        """Batches of prompts in the file's order, so that the same call gives the same bits."""
        prompts = [self._encode(context) for context in contexts]
        stop = Stop(self._sampling.response_length, frozenset(self._sampling.stop_token_ids))
        responses = [Response(ids, seed, 0, stop) for ids, seed in zip(prompts, seeds, strict=True)]
        for start in track(range(0, len(contexts), self._sampling.batch_size), what):
            self._decode(responses[start : start + self._sampling.batch_size])
        return [self._to_sample(*pair) for pair in zip(contexts, responses, strict=True)]

    def prompt_lengths(self, contexts: Sequence[Context]) -> list[int]:
        """Raises DataError for a prompt that leaves no room for a response."""
        return [len(self._encode(context)) for context in contexts]

    def logprob_sums(self, samples: Sequence[Sample]) -> list[float]:
        """By the one log-probability function, like lengths together."""
        order = sorted(range(len(samples)), key=lambda row: len(samples[row].ids))
        sums = [0.0] * len(samples)
        for start in range(0, len(order), SCORED_TOGETHER):
            rows = order[start : start + SCORED_TOGETHER]
            sequences = [samples[row].ids for row in rows]
            starts = [len(samples[row].prompt_ids) for row in rows]
            with torch.inference_mode():
                flat_N = response_logprobs(self._loaded.model, sequences, starts, self._sampling.temperature)
            counts = [len(samples[row].token_ids) for row in rows]
            for row, logprobs in zip(rows, flat_N.double().split(counts), strict=True):
                sums[row] = float(logprobs.sum())
        return sums

    def _decode(self, responses: Sequence[Response]) -> None:
        batch = DecodeBatch(self._loaded, Sampling(self._sampling.temperature), responses)
        while batch.responses:
            batch.step()

    def _to_sample(self, context: Context, response: Response) -> Sample:
        return Sample(
            context, response.prompt_ids, tuple(response.token_ids),
            decode(self._loaded.tokenizer, response.token_ids), tuple(response.logprobs),
            response.finish is not Finish.LENGTH, self.version.tokenizer_sha256,
        )  # fmt: skip

    def _encode(self, context: Context) -> tuple[int, ...]:
        ids = context.encode(self._loaded.tokenizer)
        room = self._loaded.context_length - self._sampling.response_length
        if len(ids) > room:
            raise DataError(
                f"{context.where}: prompt has {len(ids)} tokens, and the context of {self._loaded.model_id} "
                f"leaves room for {room} beside sampling.response_length; shorten it or remove the line"
            )
        return tuple(ids)


class LiveCandidate:
    """A policy service, and for log-probabilities of others' responses a reference of the same weights."""

    def __init__(
        self, policy: PolicyClient, reference: ReferenceClient | None, sampling: ResponsesSection
    ) -> None:
        """Raises ConfigError if the reference serves other weights."""
        self._policy = policy
        self._reference = reference
        self._sampling = sampling
        self._info = policy.get_policy()
        self.version = self._info.model
        if reference and reference.get_reference().model.weights_sha256 != self.version.weights_sha256:
            raise ConfigError.at(
                "reference", f"{reference} serves other weights than {policy}; start it with the same model"
            )

    def sample(self, contexts: Sequence[Context], seeds: Sequence[int], what: str) -> list[Sample]:
        """Deterministic requests by exactly the weights that were there at the start."""
        starts = range(0, len(contexts), self._sampling.batch_size)
        return [sample for start in track(starts, what) for sample in self._batch(contexts, seeds, start)]

    def prompt_lengths(self, contexts: Sequence[Context]) -> None:
        """The service's affair."""

    def logprob_sums(self, samples: Sequence[Sample]) -> list[float] | None:
        """From the reference; None without one."""
        if self._reference is None:
            return None
        sums: list[float] = []
        limits = self._reference.get_reference().limits
        for rows in batches([len(sample.ids) for sample in samples], limits):
            sequences = [samples[row].ids for row in rows]
            starts = [len(samples[row].prompt_ids) for row in rows]
            answer = self._reference.compute_logprobs(sequences, starts, self._sampling.temperature)
            sums += [math.fsum(values) for values in answer.values]
        return sums

    def _batch(self, contexts: Sequence[Context], seeds: Sequence[int], start: int) -> list[Sample]:
        chunk = contexts[start : start + self._sampling.batch_size]
        generation = self._policy.generate(
            [Chat(context.messages) if context.messages else context.text for context in chunk],
            max_new_tokens=self._sampling.response_length,
            temperature=self._sampling.temperature,
            stop_token_ids=self._sampling.stop_token_ids,
            seeds=seeds[start : start + len(chunk)],
            deterministic=True,
            step_exactly=self.version.step,
        )
        return [
            Sample(
                chunk[each.prompt_index], generation.prompt_token_ids[each.prompt_index], each.token_ids,
                each.text, tuple(each.logprobs.tolist()), each.ended, self.version.tokenizer_sha256,
            )
            for each in generation.sequences
        ]  # fmt: skip


def load_candidate(section: CandidateSection, sampling: ResponsesSection, placement: Placement) -> Candidate:
    """The policy of [a] or [b]. Raises ModelLoadError, PlauditError, ConfigError."""
    if section.path is not None:
        return LocalCandidate(load_causal_lm(section.path, placement), sampling)
    reference = ReferenceClient(section.reference) if section.reference else None
    return LiveCandidate(PolicyClient(section.address or "", timeout=300.0), reference, sampling)
