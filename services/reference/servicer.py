"""plaudit.v1.ReferenceService: each method is convert, work, convert."""

from typing import TYPE_CHECKING

from plaudit.v1 import reference_pb2, reference_pb2_grpc
from services.batching import Caller
from services.reference import convert
from services.reference.dataplane import ReferenceDataPlane
from services.reference.metrics import ReferenceMetrics
from services.rpc.callers import caller_of, deadline_of
from services.rpc.quotas import charged
from services.rpc.readable import request_size

if TYPE_CHECKING:
    from services.rpc.calls import Context


class ReferenceServicer(reference_pb2_grpc.ReferenceServiceServicer):
    """Gives log-probabilities; called only when the model is loaded."""

    def __init__(self, plane: ReferenceDataPlane, metrics: ReferenceMetrics) -> None:
        self._plane = plane
        self._metrics = metrics

    async def ComputeLogprobs(
        self, request: reference_pb2.ComputeLogprobsRequest, context: "Context"
    ) -> reference_pb2.ComputeLogprobsResponse:
        """Log-probabilities of each sequence from its start on."""
        facts, size = self._plane.facts, request_size.get()
        caller = Caller(caller_of(context), deadline=deadline_of(context))
        self._plane.admit(len(request.sequences), size, caller)
        items = convert.items(request, facts, self._plane.limits)
        with charged(sum(len(item.ids) for item in items)):
            rows = await self._plane.logprobs(items, caller, size)
        self._metrics.count(items)
        return convert.compute_logprobs_response(rows, facts)

    async def GetReference(
        self, request: reference_pb2.GetReferenceRequest, context: "Context"
    ) -> reference_pb2.GetReferenceResponse:
        """Describes the model."""
        return convert.get_reference_response(self._plane.facts, self._plane.limits, self._plane.batcher)
