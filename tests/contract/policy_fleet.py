"""Policy servers that come and go, and the trainer's side of them, on the tiny model."""

import contextlib
from dataclasses import dataclass

import torch

from lm.digests import WeightsDigest, effective_tensors
from lm.loading import load_causal_lm
from lm.placement import choose_placement
from plaudit.clients import PolicyClient, WeightsClient
from services.policy.service import policy_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions
from services.rpc.server import ServerOptions
from trainer.ppo.config import SamplingSection
from trainer.ppo.fleet import DiscoveredFleet, NamedFleet
from trainer.ppo.patience import Patience
from trainer.ppo.remote_policy import RemotePolicy
from trainer.ppo.replica import Replica
from trainer.ppo.rollout import Prompt

CPU = choose_placement("cpu", "float32", 1)
TEXTS = ["the film", "a dull", "what a", "not worth", "the story", "lifeless", "seeing"]
SEEDS = list(range(100, 107))


def model_options(folder, dtype="float32"):
    return ModelOptions(str(folder), "cpu", dtype, 1)


@dataclass
class PolicyServer:
    """A policy server that can be stopped and started again at the same address."""

    folder: object
    dtype: str = "float32"
    address: str = "127.0.0.1:0"

    def start(self):
        self._stack = contextlib.ExitStack()
        server = self._stack.enter_context(
            serve_in_background(
                lambda: policy_service(model_options(self.folder, self.dtype)), ServerOptions(self.address)
            )
        )
        self.address = server.address
        return self

    def stop(self):
        self._stack.close()

    def model(self):
        with PolicyClient(self.address) as client:
            return client.get_policy().model


class Pods:
    """What a cluster would say of the ready pods; a test changes it."""

    def __init__(self, *servers):
        self.there = {server.address for server in servers}
        self.closed = False

    def addresses(self):
        return frozenset(self.there)

    def close(self):
        self.closed = True


def open_replica(endpoint):
    return Replica(endpoint, PolicyClient(endpoint.target), WeightsClient(endpoint.target))


def named_fleet(servers):
    return NamedFleet([server.address for server in servers], open_replica)


def discovered_fleet(pods):
    return DiscoveredFleet("kubernetes:///policy:grpc", pods, open_replica)


def remote_policy(fleet, learner, seconds=10.0, run_id="r", dtype=torch.float32, request_size=2):
    """RemotePolicy whose weights are those of `learner` when they are pushed."""
    sampling = SamplingSection(response_length=6, request_size=request_size)
    return RemotePolicy(fleet, sampling, Patience(seconds), run_id, lambda: effective_tensors(learner), dtype)


def tiny_prompts(folder):
    tokenizer = load_causal_lm(str(folder), CPU).tokenizer
    return [Prompt(i, tuple(tokenizer(text)["input_ids"]), text) for i, text in enumerate(TEXTS)]


def learn(learner, names=("model.norm.weight", "model.layers.1.mlp.up_proj.weight")):
    """A step of training, as far as the policy can tell: some tensors change."""
    chosen = [(name, tensor) for name, tensor in effective_tensors(learner) if name in names]
    with torch.no_grad():
        for _, tensor in chosen:
            tensor.mul_(1.5)
    return chosen


def digest(model, dtype=torch.float32):
    return WeightsDigest((name, tensor.to(dtype)) for name, tensor in effective_tensors(model)).hexdigest()
