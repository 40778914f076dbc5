"""An engine on the tiny policy in float64, whose decode steps a test can hold back."""

import asyncio
import copy
import dataclasses
import functools
import math

import torch
from prometheus_client import CollectorRegistry

from lm.digests import WeightsDigest, effective_tensors, tensor_bytes
from lm.generation import DecodeBatch, Response, Sampling, Stop
from services.batching import CallLimits
from services.compute import ComputeThread
from services.policy.engine import TorchEngine
from services.policy.interface import GenerationRequest, Manifest, Version
from services.policy.metrics import PolicyMetrics
from services.policy.model import ServedModel, load_model
from services.policy.model_weights import ModelWeights, _spec
from services.policy.rows import BatchLimits


class GatedThread(ComputeThread):
    """A compute thread that lets as many decode steps pass as it is told."""

    def __init__(self):
        super().__init__("test-compute")
        self.left = math.inf
        self._more, self._blocked = asyncio.Event(), asyncio.Event()

    async def run(self, fn, *args, **kwargs):
        if getattr(fn, "__name__", "") == "step":
            while self.left <= 0:
                self._blocked.set()
                self._more.clear()
                await self._more.wait()
            self.left -= 1
        return await super().run(fn, *args, **kwargs)

    async def steps(self, count):
        """Lets `count` steps pass and returns when the next one waits."""
        self.allow(count)
        await self._blocked.wait()

    def allow(self, count=math.inf):
        self.left = count
        self._blocked.clear()
        self._more.set()


@functools.cache
def _model_from_disk(folder, dtype):
    return load_model(folder, "cpu", dtype, 1)


def fresh_model(folder, dtype="float64"):
    """The model as it is on disk, for a test to change."""
    model = _model_from_disk(str(folder), dtype)
    loaded = dataclasses.replace(model.loaded, model=copy.deepcopy(model.loaded.model))
    return ServedModel(loaded, ModelWeights(loaded.model), model.facts)


class Bench:
    """An engine with everything around it."""

    def __init__(self, folder, **options):
        self.registry = CollectorRegistry()
        self.metrics = PolicyMetrics(self.registry)
        self.model = fresh_model(folder, options.pop("dtype", "float64"))
        self.thread = GatedThread()
        self.versions = []
        self.engine = TorchEngine(
            self.model,
            self.thread,
            self.metrics,
            options.pop("call_limits", CallLimits()),
            options.pop("batch_limits", BatchLimits()),
            on_version=self.versions.append,
        )

    def metric(self, name, **labels):
        return self.registry.get_sample_value(name, labels)

    async def generate(self, *prompts, **how):
        return await self.engine.submit(asked(*prompts, **how)).all()

    async def swap_waits(self):
        """Returns when new weights are verified and wait for their moment."""
        while self.engine._swap is None:  # noqa: ASYNC110 (the engine tells nobody)
            await asyncio.sleep(0.001)

    async def close(self):
        self.thread.allow()
        await self.engine.close()
        await self.thread.close()


def asked(*prompts, **how):
    """A request with seeds 0, 1, 2, …"""
    seeds = tuple(range(len(prompts)))
    return GenerationRequest(**{"prompts": prompts, "seeds": seeds, "max_new_tokens": 8, **how})


def new_weights(model, seed=1, names=None):
    """(name, tensor) of changed parameters, and the digest of the model with them."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [
        (name, (tensor + 0.1 * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype))
        for name, tensor in effective_tensors(model.loaded.model)
        if names is None or name in names
    ]
    digest = WeightsDigest(effective_tensors(model.loaded.model)).with_changed(tensors).hexdigest()
    return tensors, digest


def version(step, digest, run_id="run"):
    return Version(run_id, step, digest)


def continued(loaded, prompt, tokens, count, seed):
    """`count` more tokens after `tokens`, by a model alone, with the seed's own random numbers."""
    row = Response(tuple(prompt), seed, 0, Stop(len(tokens) + count), token_ids=list(tokens))
    batch = DecodeBatch(loaded, Sampling(), [row])
    while batch.responses:
        batch.step()
    return row.token_ids[len(tokens) :]


class Trainer:
    """Whoever pushes: has new weights, their manifest and their bytes."""

    def __init__(self, bench, run_id="run", base=0, new=1, seed=1, names=None):
        tensors, digest = new_weights(bench.model, seed=seed, names=names)
        specs = tuple(_spec(name, tensor) for name, tensor in tensors)
        self.tensors = tensors
        self.data = b"".join(bytes(tensor_bytes(tensor)) for _, tensor in tensors)
        self.manifest = Manifest(run_id, base, new, specs, digest)

    def but(self, **changes):
        return dataclasses.replace(self.manifest, **changes)

    def send(self, pushes, size=5000):
        """Begins, and sends all bytes; returns the push's id."""
        push = pushes.begin(self.manifest)
        assert push.total == len(self.data)
        for offset in range(0, push.total, size):
            pushes.append(push.id, offset, self.data[offset : offset + size])
        return push.id
