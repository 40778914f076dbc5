"""The roles in one process, each from a tiny model: what services do, without the network between."""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lm.generation import DecodeBatch, Finish, Response as Growing, Sampling, Stop
from lm.loading import LoadedLM, load_causal_lm, load_reward_model
from lm.logprobs import response_logprobs, unflatten
from lm.placement import Placement
from lm.tokenizer import decode
from trainer.ppo.config import CriticSection, PPOSection
from trainer.ppo.critic import ValueCritic
from trainer.ppo.kl import KLController, make_controller
from trainer.ppo.learner import Learner
from trainer.ppo.ptx import PretrainingMix
from trainer.ppo.roles import Roles, Scores
from trainer.ppo.rollout import Prompt, Response, Rollout
from trainer.ppo.step import ppo_step

PROMPTS = (
    "the film is",
    "a dull",
    "what a wonderful",
    "not worth",
    "good story",
    "the",
    "seeing a film",
    "what",
)


def place(dtype: torch.dtype, device: str) -> Placement:
    return Placement(torch.device(device), dtype, 1, "for a test")


@cache
def loaded_once(load: Callable[..., Any], folder: Path, placement: Placement) -> Any:
    return load(str(folder), placement)


def loaded_anew(load: Callable[..., Any], folder: Path, placement: Placement) -> Any:
    """What `load` gives, with a model of its own: a copy, since loading takes much longer."""
    loaded = loaded_once(load, folder, placement)
    return replace(loaded, model=deepcopy(loaded.model))


@dataclass
class LocalPolicy:
    """roles.Policy on a model of its own."""

    loaded: LoadedLM
    length: int
    temperature: float
    step: int = 0
    calls: list[int] = field(default_factory=list)

    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int], step: int) -> list[Response]:
        assert step == self.step, "asked for other weights than were pushed"
        self.calls.append(len(prompts))
        stop = Stop(self.length)
        rows = [Growing(p.token_ids, seed, 0, stop) for p, seed in zip(prompts, seeds, strict=True)]
        batch = DecodeBatch(self.loaded, Sampling(self.temperature), rows)
        while batch.responses:
            batch.step()
        return [self._response(row, step) for row in rows]

    def _response(self, row: Growing, step: int) -> Response:
        ids = tuple(row.token_ids)
        text = decode(self.loaded.tokenizer, ids)
        spans = ((step, 0, len(ids)),)
        return Response(ids, text, tuple(row.logprobs), row.finish != Finish.LENGTH, spans, row.seed)

    def push(self, tensors: Iterable[tuple[str, Tensor]], step: int) -> None:
        self.loaded.model.load_state_dict(dict(tensors), strict=False)
        self.step = step


@dataclass
class LocalReference:
    """roles.Reference on a model of its own."""

    loaded: LoadedLM
    temperature: float

    @torch.no_grad()
    def logprobs(self, rollout: Rollout) -> Tensor:
        flat = response_logprobs(self.loaded.model, rollout.sequences, rollout.starts, self.temperature)
        counts = [len(response.token_ids) for response in rollout.responses]
        return unflatten(flat, counts).float().cpu()


@dataclass
class ShareOfToken:
    """roles.Reward: the share of the response that is one token, less a half; counts as normalised."""

    token: int

    def score(self, rollout: Rollout) -> Scores:
        shares = (r.token_ids.count(self.token) / len(r.token_ids) - 0.5 for r in rollout.responses)
        return Scores(dict(enumerate(shares)), {})


@dataclass
class World:
    """A whole run in one process."""

    config: PPOSection
    prompts: list[Prompt]
    roles: Roles
    learner: Learner
    critic: ValueCritic
    kl: KLController
    history: list[dict[str, float]] = field(default_factory=list)

    def step(self, **options: Any) -> dict[str, float]:
        batch = [self.prompts[row % len(self.prompts)] for row in range(self.config.batch_size)]
        metrics = ppo_step(
            batch, self.roles, self.learner, self.critic, self.kl, self.config, seed=7, **options
        )
        self.roles.policy.push(self.learner.changed_tensors(torch.float64), self.learner.step)
        self.history.append(metrics)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).state_dict() for name in ("learner", "critic", "kl")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in state.items():
            getattr(self, name).load_state_dict(part)
        self.roles.policy.push(self.learner.changed_tensors(torch.float64), self.learner.step)


MakeWorld = Callable[..., World]


@pytest.fixture
def make_world(tiny_policy: Path, tiny_reward: Path) -> MakeWorld:
    """World(dtype, device, length, temperature, trainable, critic={…}, **ppo settings), small and quick."""

    def make(
        dtype: torch.dtype = torch.float32,
        *,
        device: str = "cpu",
        length: int = 6,
        temperature: float = 1.0,
        trainable: str | list[str] = "all",
        critic: dict[str, Any] | None = None,
        documents: Sequence[Sequence[int]] = (),
        **settings: Any,
    ) -> World:
        base = {"batch_size": 8, "num_mini_batches": 2, "learning_rate": 1e-3, "warmup_iterations": 0}
        config = PPOSection(**(base | settings))
        critic_config = CriticSection(path=str(tiny_reward), **({"learning_rate": 1e-3} | (critic or {})))
        placement = place(dtype, device)
        loaded = loaded_anew(load_causal_lm, tiny_policy, placement)
        prompts = [
            Prompt(i, tuple(loaded.tokenizer(text)["input_ids"]), text) for i, text in enumerate(PROMPTS)
        ]
        generator = loaded_anew(load_causal_lm, tiny_policy, placement)
        reference = loaded_anew(load_causal_lm, tiny_policy, placement)
        target = loaded.tokenizer("e")["input_ids"][0]
        roles = Roles(
            LocalPolicy(generator, length, temperature),
            ShareOfToken(target),
            LocalReference(reference, temperature),
        )
        learner = Learner(
            loaded,
            config,
            trainable=trainable,
            placement=placement,
            generator_dtype=dtype,
            temperature=temperature,
            seed=3,
            pretraining=PretrainingMix(documents, config.ptx_length, seed=4) if documents else None,
        )
        value = ValueCritic(
            loaded_anew(load_reward_model, tiny_reward, placement), critic_config, placement, config.gamma
        )
        kl = make_controller(config.kl_coef, config.adap_kl_ctrl, config.target, config.horizon)
        return World(config, prompts, roles, learner, value, kl)

    return make
