"""The loaded policy: its engine, its pushes, and the threads they use; asyncio, without gRPC and protos."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING

from services.batching import CallLimits
from services.compute import ComputeThread
from services.policy.interface import Generated, GenerationRequest, Manifest, SwapMode, Version
from services.policy.metrics import PolicyMetrics
from services.policy.watch import VersionWatchers
from services.policy.weights_files import tensor_chunks
from services.policy.weights_roots import WeightsRoots

if TYPE_CHECKING:  # they bring torch, which waits until the port is bound
    from services.policy.engine import TorchEngine
    from services.policy.model import ServedModel
    from services.policy.weights import Pushes


class PolicyDataPlane:
    """Owns the engine and the threads that use it: one tokenises, one computes."""

    engine: "TorchEngine"
    pushes: "Pushes"

    def __init__(
        self,
        load_model: "Callable[[], ServedModel]",
        limits: CallLimits,
        metrics: PolicyMetrics,
        on_version: Callable[[Version], None],
        roots: WeightsRoots,
    ) -> None:
        """`on_version` hears of the first weights and of every swap; `roots` is what load_files may read."""
        self.limits = limits
        self._roots = roots
        self._watchers = VersionWatchers()
        self._load_model = load_model
        self._metrics = metrics
        self._on_version = on_version
        self._computing = ComputeThread("policy-compute")
        self._tokenizing = ComputeThread("policy-tokenizer")

    async def load(self) -> None:
        """Loads the model in the compute thread; raises what loading raises."""
        model = await self._computing.run(self._load_model)
        from services.policy.engine import TorchEngine  # torch is imported by now
        from services.policy.weights import Pushes

        self.engine = TorchEngine(model, self._computing, self._metrics, self.limits, on_version=self._tell)
        self.pushes = Pushes(self.engine, self._metrics)
        self._on_version(self.engine.version)

    async def load_files(self, uri: str, manifest: Manifest, mode: SwapMode, take_over: bool) -> Version:
        """A push whose bytes are in files. Raises what Pushes.load and tensor_chunks raise."""
        chunks = await asyncio.to_thread(tensor_chunks, self._roots, uri, manifest.tensors)
        return await self.pushes.load(manifest, chunks, mode, take_over)

    def versions(self, closing: asyncio.Event) -> AsyncGenerator[Version, None]:
        """The version that serves, then each other. As VersionWatchers.versions."""
        return self._watchers.versions(lambda: self.engine.version, closing)

    async def close(self) -> None:
        """Ends what still runs, and the threads."""
        await self._tokenizing.close()
        await self.pushes.close()
        await self.engine.close()
        await self._computing.close()

    async def tokenize(self, make: Callable[[], GenerationRequest]) -> GenerationRequest:
        """Runs `make` off the event loop."""
        return await self._tokenizing.run(make)

    async def generate(self, request: GenerationRequest) -> tuple[list[Generated], Version]:
        """All responses in order, and the weights loaded when the last one ended.

        A caller that goes away stops the work. Raises PreconditionFailed, Overloaded, TooLate, NotServing.
        """
        generation = self.engine.submit(request)
        try:
            responses = await generation.all()
        finally:
            self.engine.cancel(generation)  # changes nothing once all have come
        return responses, generation.version or self.engine.version

    def _tell(self, version: Version) -> None:
        self._on_version(version)
        self._watchers.wake()
