"""Clients that give a policy new weights.

Always one replica's own address: weights never go through a load balancer. With several replicas, stage
on all of them, then commit on all.
"""

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TypeAlias

from plaudit.clients import from_proto, to_proto
from plaudit.clients.calls import AsyncClient, Client
from plaudit.clients.channel import Method
from plaudit.clients.data import ModelVersion, PushManifest, SwapMode
from plaudit.clients.errors import PlauditError
from plaudit.v1.weights_pb2 import (
    AbortPushRequest,
    AbortPushResponse,
    BeginPushRequest,
    BeginPushResponse,
    CommitPushRequest,
    CommitPushResponse,
    PushChunksRequest,
    PushChunksResponse,
)

SERVICE = "plaudit.v1.WeightsService"
BEGIN_PUSH: Method[BeginPushRequest, BeginPushResponse] = Method(SERVICE, "BeginPush", BeginPushResponse)
PUSH_CHUNKS: Method[PushChunksRequest, PushChunksResponse] = Method(SERVICE, "PushChunks", PushChunksResponse)
COMMIT_PUSH: Method[CommitPushRequest, CommitPushResponse] = Method(SERVICE, "CommitPush", CommitPushResponse)
ABORT_PUSH: Method[AbortPushRequest, AbortPushResponse] = Method(SERVICE, "AbortPush", AbortPushResponse)

ABORT_TIMEOUT = 10.0
"""Seconds that giving up a push that has failed may take."""

Pieces: TypeAlias = Iterable[bytes | memoryview]
"""The bytes of the tensors, in the manifest's order; little-endian, row-major, cut as you like."""


class WeightsClient(Client):
    """Replaces weights of one policy server, all or nothing.

    >>> from plaudit import PolicyClient, PushManifest, TensorSpec, WeightsClient
    >>> with PolicyClient("127.0.0.1:50051") as policy:
    ...     loaded = policy.get_policy().model
    >>> manifest = PushManifest(
    ...     run_id="example",
    ...     base_step=loaded.step,
    ...     new_step=loaded.step + 1,
    ...     tensors=[TensorSpec("model.norm.weight", "float32", (32,))],
    ...     weights_sha256="0" * 64,
    ... )
    >>> with WeightsClient("127.0.0.1:50051") as weights:
    ...     push_id = weights.stage(manifest, [bytes(32 * 4)])
    ...     weights.abort(push_id) == loaded
    True
    """

    _service = "weights"
    _one_address = True

    def push(
        self,
        manifest: PushManifest,
        pieces: Pieces,
        *,
        mode: SwapMode = "in_place",
        timeout: float | None = None,
    ) -> ModelVersion:
        """Stages and commits; returns what is loaded then. `timeout` holds for each RPC."""
        return self.commit(self.stage(manifest, pieces, timeout=timeout), mode=mode, timeout=timeout)

    def stage(self, manifest: PushManifest, pieces: Pieces, *, timeout: float | None = None) -> str:
        """Sends the tensors without loading them; returns the push id for commit or abort.

        On any failure the push is given up, and the error raised: FailedPrecondition (the manifest
        doesn't fit the model), Aborted (another push is under way), or what `pieces` raised.
        """
        push_id = self._call(BEGIN_PUSH, to_proto.begin_push_request(manifest), timeout).push_id
        with self._aborting(push_id):
            self._send(PUSH_CHUNKS, to_proto.chunk_requests(push_id, pieces), timeout)
        return push_id

    def commit(
        self, push_id: str, *, mode: SwapMode = "in_place", timeout: float | None = None
    ) -> ModelVersion:
        """Loads what was staged, between two decode steps or ("drain") after the responses in flight.

        Raises DataLoss if the digest doesn't match; the old weights then serve on and the push is
        gone. After Unreachable or DeadlineExceeded only get_policy can tell which weights serve.
        """
        request = to_proto.commit_request(push_id, mode)
        with self._aborting(push_id):
            return from_proto.model_version(self._call(COMMIT_PUSH, request, timeout).model)

    def abort(self, push_id: str, *, timeout: float | None = None) -> ModelVersion:
        """Gives a staged push up; returns what is loaded, unchanged. NotFound if it is gone already."""
        response = self._call(ABORT_PUSH, AbortPushRequest(push_id=push_id), timeout)
        return from_proto.model_version(response.model)

    @contextmanager
    def _aborting(self, push_id: str) -> Iterator[None]:
        try:
            yield
        except BaseException:
            with suppress(PlauditError):  # the first error is the one to tell
                self.abort(push_id, timeout=ABORT_TIMEOUT)
            raise


class AsyncWeightsClient(AsyncClient):
    """WeightsClient to be awaited."""

    _service = "weights"
    _one_address = True

    async def push(
        self,
        manifest: PushManifest,
        pieces: Pieces,
        *,
        mode: SwapMode = "in_place",
        timeout: float | None = None,
    ) -> ModelVersion:
        """As WeightsClient.push."""
        push_id = await self.stage(manifest, pieces, timeout=timeout)
        return await self.commit(push_id, mode=mode, timeout=timeout)

    async def stage(self, manifest: PushManifest, pieces: Pieces, *, timeout: float | None = None) -> str:
        """As WeightsClient.stage; `pieces` are taken in a thread."""
        response = await self._call(BEGIN_PUSH, to_proto.begin_push_request(manifest), timeout)
        async with self._aborting(response.push_id):
            await self._send(PUSH_CHUNKS, to_proto.chunk_requests(response.push_id, pieces), timeout)
        return response.push_id

    async def commit(
        self, push_id: str, *, mode: SwapMode = "in_place", timeout: float | None = None
    ) -> ModelVersion:
        """As WeightsClient.commit."""
        request = to_proto.commit_request(push_id, mode)
        async with self._aborting(push_id):
            response = await self._call(COMMIT_PUSH, request, timeout)
        return from_proto.model_version(response.model)

    async def abort(self, push_id: str, *, timeout: float | None = None) -> ModelVersion:
        """As WeightsClient.abort."""
        response = await self._call(ABORT_PUSH, AbortPushRequest(push_id=push_id), timeout)
        return from_proto.model_version(response.model)

    @asynccontextmanager
    async def _aborting(self, push_id: str) -> AsyncIterator[None]:
        try:
            yield
        except BaseException:
            with suppress(PlauditError):
                await self.abort(push_id, timeout=ABORT_TIMEOUT)
            raise
