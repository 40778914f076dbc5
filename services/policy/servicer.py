"""plaudit.v1.PolicyService: each method is convert, work, convert."""

from typing import TYPE_CHECKING

from plaudit.v1 import policy_pb2, policy_pb2_grpc
from services.policy import convert
from services.policy.dataplane import PolicyDataPlane
from services.rpc.callers import deadline_of
from services.rpc.quotas import charged
from services.rpc.readable import request_size

if TYPE_CHECKING:
    from services.rpc.calls import Context


class PolicyServicer(policy_pb2_grpc.PolicyServiceServicer):
    """Generates; called only when the model is loaded."""

    def __init__(self, plane: PolicyDataPlane) -> None:
        self._plane = plane

    async def Generate(
        self, request: policy_pb2.GenerateRequest, context: "Context"
    ) -> policy_pb2.GenerateResponse:
        """Samples responses to every prompt."""
        plane, deadline, size = self._plane, deadline_of(context), request_size.get()
        count = convert.count_sequences(request, plane.limits)
        with plane.engine.queue.room.reserve(count, size):  # else what waits to be read would have no bound
            asked = await plane.tokenize(
                lambda: convert.generation_request(request, plane.engine, plane.limits, deadline, size)
            )
        with charged(asked.tokens):
            responses, version = await plane.generate(asked)
        return convert.generate_response(asked, responses, plane.engine.facts, version)

    async def GetPolicy(
        self, request: policy_pb2.GetPolicyRequest, context: "Context"
    ) -> policy_pb2.GetPolicyResponse:
        """Describes the policy and the weights that are loaded."""
        engine = self._plane.engine
        return convert.get_policy_response(engine.facts, engine.version, self._plane.limits, engine.queue)
