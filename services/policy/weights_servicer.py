"""plaudit.v1.WeightsService: each method is convert, work, convert."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING

from plaudit.v1 import weights_pb2, weights_pb2_grpc
from services.errors import InvalidInput
from services.policy import convert, weights_convert
from services.policy.dataplane import PolicyDataPlane
from services.policy.interface import Version

if TYPE_CHECKING:
    from plaudit.v1 import types_pb2
    from services.rpc.calls import Context
    from services.rpc.interceptors import Readiness


class WeightsServicer(weights_pb2_grpc.WeightsServiceServicer):
    """Takes new weights; called only when the model is loaded."""

    def __init__(self, plane: PolicyDataPlane, readiness: "Readiness") -> None:
        self._plane = plane
        self._readiness = readiness

    async def BeginPush(
        self, request: weights_pb2.BeginPushRequest, context: "Context"
    ) -> weights_pb2.BeginPushResponse:
        """Opens a push, or finds it open."""
        manifest = weights_convert.manifest(request.manifest)
        push = self._plane.pushes.begin(manifest, request.take_over)
        return weights_pb2.BeginPushResponse(
            push_id=push.id, total_bytes=push.total, received_bytes=push.received
        )

    async def PushChunks(
        self, request_iterator: AsyncIterator[weights_pb2.PushChunksRequest], context: "Context"
    ) -> weights_pb2.PushChunksResponse:
        """Takes bytes in order; a stream that breaks keeps what has arrived."""
        received = None
        async for chunk in request_iterator:
            received = self._plane.pushes.append(chunk.push_id, chunk.offset, chunk.data)
        if received is None:
            raise InvalidInput.at("push_id", "the stream holds no chunk; send at least one")
        return weights_pb2.PushChunksResponse(received_bytes=received)

    async def GetPush(
        self, request: weights_pb2.GetPushRequest, context: "Context"
    ) -> weights_pb2.GetPushResponse:
        """How far a push is."""
        pushes = self._plane.pushes
        by_id = bool(request.push_id)
        push = pushes.find(request.push_id) if by_id else pushes.newest(request.run_id, request.new_step)
        return weights_convert.get_push_response(push)

    async def CommitPush(
        self, request: weights_pb2.CommitPushRequest, context: "Context"
    ) -> weights_pb2.CommitPushResponse:
        """Verifies and swaps."""
        mode = weights_convert.swap_mode(request.mode)
        version = await self._plane.pushes.commit(request.push_id, mode)
        return weights_pb2.CommitPushResponse(model=self._model_version(version))

    async def AbortPush(
        self, request: weights_pb2.AbortPushRequest, context: "Context"
    ) -> weights_pb2.AbortPushResponse:
        """Gives a push up."""
        version = await self._plane.pushes.abort(request.push_id)
        return weights_pb2.AbortPushResponse(model=self._model_version(version))

    async def WatchPolicyVersion(
        self, request: weights_pb2.WatchPolicyVersionRequest, context: "Context"
    ) -> AsyncIterator[weights_pb2.WatchPolicyVersionResponse]:
        """What is loaded now, then each change, until the server drains."""
        async with aclosing(self._plane.versions(self._readiness.closing)) as versions:
            async for version in versions:
                yield weights_pb2.WatchPolicyVersionResponse(model=self._model_version(version))

    async def LoadFromUri(
        self, request: weights_pb2.LoadFromUriRequest, context: "Context"
    ) -> weights_pb2.LoadFromUriResponse:
        """Reads, verifies and swaps."""
        manifest, mode = weights_convert.manifest(request.manifest), weights_convert.swap_mode(request.mode)
        version = await self._plane.load_files(request.uri, manifest, mode, request.take_over)
        return weights_pb2.LoadFromUriResponse(model=self._model_version(version))

    def _model_version(self, version: Version) -> "types_pb2.ModelVersion":
        return convert.model_version(self._plane.engine.facts, version)
