"""Reward and reference as services: the roles of roles.py over gRPC clients.

Shapes: B sequences, T response tokens (right-padded).
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from plaudit.clients import ReferenceClient, RewardClient
from plaudit.clients.data import Chat, ModelVersion, ReferenceInfo, Scorable
from plaudit.clients.data_reward import Reward, RewardInfo
from plaudit.clients.errors import ItemFailure
from trainer.ppo.batches import batches
from trainer.ppo.patience import Endpoint, Patience
from trainer.ppo.roles import Scores, StaleWeights
from trainer.ppo.rollout import Prompt, Response, Rollout

Form = Literal["ids", "text"]


def check_same_model(endpoint: Endpoint, expected: ModelVersion, found: ModelVersion) -> None:
    """Raises StaleWeights if a service was restarted with another model in the middle of a run."""
    if found.weights_sha256 != expected.weights_sha256:
        raise StaleWeights(
            f"{endpoint} now serves {found.model_id} {found.weights_sha256[:12]}, at the start of the run "
            f"it was {expected.model_id} {expected.weights_sha256[:12]}: start the service with that one"
        )


class RemoteReward:
    """A reward service; asked in ids if it has the policy's tokenizer, in text otherwise."""

    def __init__(
        self,
        client: RewardClient,
        info: RewardInfo,
        endpoint: Endpoint,
        patience: Patience,
        tokenizer_sha256: str,
    ) -> None:
        """`info` is what the service said before the run; `tokenizer_sha256` made the rollout's ids."""
        self._client = client
        self._info = info
        self._endpoint = endpoint
        self._patience = patience
        self._tokenizer_sha256 = tokenizer_sha256
        self.form: Form = reward_form(info, tokenizer_sha256)

    def score(self, rollout: Rollout) -> Scores:
        """One normalised reward per sequence; those that could not be had stand in `failures`.

        Raises RoleUnavailable, and StaleWeights if another model answers than at the start.
        """
        items = [self._item(*pair) for pair in zip(rollout.prompts, rollout.responses, strict=True)]
        values: dict[int, float] = {}
        failures: dict[int, str] = {}
        for rows in batches([len(sequence) for sequence in rollout.sequences], self._info.limits):
            for row, result in zip(rows, self._ask(items[rows.start : rows.stop]), strict=True):
                if isinstance(result, Reward):
                    values[row] = result.reward
                else:
                    failures[row] = f"{self._endpoint}: {result.code}: {result.message}"
        return Scores(values, failures)

    def _ask(self, items: Sequence[Scorable]) -> Sequence[Reward | ItemFailure]:
        digest = self._tokenizer_sha256 if self.form == "ids" else ""
        # Batches of its own: a run's bits must not hang on who else asks.
        ask = partial(self._client.score, items, tokenizer_sha256=digest, deterministic=True)
        scores = self._patience.call(self._endpoint, ask)
        check_same_model(self._endpoint, self._info.model, scores.model)
        return scores.results

    def _item(self, prompt: Prompt, response: Response) -> Scorable:
        if self.form == "ids":
            return prompt.token_ids + response.token_ids
        if prompt.messages:
            return Chat([*prompt.messages, ("assistant", response.text)])
        return prompt.text, response.text


def reward_form(info: RewardInfo, tokenizer_sha256: str) -> Form:
    """Ids where the reward model reads the policy's, else text: a foreign model has other ids."""
    return "ids" if info.model.tokenizer_sha256 == tokenizer_sha256 else "text"


class RemoteReference:
    """A reference service."""

    def __init__(
        self,
        client: ReferenceClient,
        info: ReferenceInfo,
        endpoint: Endpoint,
        patience: Patience,
        temperature: float,
    ) -> None:
        """`info` is what the service said before the run; `temperature` is the sampling's."""
        self._client = client
        self._info = info
        self._endpoint = endpoint
        self._patience = patience
        self._temperature = temperature

    def logprobs(self, rollout: Rollout) -> Tensor:
        """float32 ref_logprobs_BT at the sampling temperature; 0 where masked.

        Raises RoleUnavailable, and StaleWeights if another model answers than at the start.
        """
        sequences, starts = rollout.sequences, rollout.starts
        ref_logprobs_BT = torch.zeros(rollout.loss_mask_BT.shape)
        for rows in batches([len(sequence) for sequence in sequences], self._info.limits):
            asked = slice(rows.start, rows.stop)
            ask = partial(self._client.compute_logprobs, sequences[asked], starts[asked])
            answer = self._patience.call(self._endpoint, partial(ask, temperature=self._temperature))
            check_same_model(self._endpoint, self._info.model, answer.model)
            for row, logprobs in zip(rows, answer.values, strict=True):
                ref_logprobs_BT[row, : len(logprobs)] = torch.from_numpy(logprobs.copy())
        return ref_logprobs_BT
