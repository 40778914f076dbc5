"""plaudit.v1.WeightsService: each method is convert, work, convert."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from plaudit.v1 import weights_pb2, weights_pb2_grpc
from services.errors import InvalidInput
from services.policy import convert, weights_convert
from services.policy.dataplane import PolicyDataPlane
from services.policy.interface import Version

if TYPE_CHECKING:
    from plaudit.v1 import types_pb2
    from services.rpc.calls import Context


class WeightsServicer(weights_pb2_grpc.WeightsServiceServicer):
    """Takes new weights; called only when the model is loaded."""

    def __init__(self, plane: PolicyDataPlane) -> None:
        self._plane = plane

    async def BeginPush(
        self, request: weights_pb2.BeginPushRequest, context: "Context"
    ) -> weights_pb2.BeginPushResponse:
        """Opens a push."""
        push_id, total_bytes = self._plane.pushes.begin(weights_convert.manifest(request.manifest))
        return weights_pb2.BeginPushResponse(push_id=push_id, total_bytes=total_bytes)

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
        version = self._plane.pushes.abort(request.push_id)
        return weights_pb2.AbortPushResponse(model=self._model_version(version))

    def _model_version(self, version: Version) -> "types_pb2.ModelVersion":
        return convert.model_version(self._plane.engine.facts, version)
