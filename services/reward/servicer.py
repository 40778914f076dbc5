"""plaudit.v1.RewardService: each method is convert, work, convert."""

from typing import TYPE_CHECKING

from plaudit.v1 import reward_pb2, reward_pb2_grpc
from services.reward import convert
from services.reward.dataplane import RewardDataPlane
from services.reward.items import Score
from services.reward.metrics import RewardMetrics
from services.rpc.calls import deadline_of

if TYPE_CHECKING:
    from services.rpc.calls import Context


class RewardServicer(reward_pb2_grpc.RewardServiceServicer):
    """Scores responses; called only when the model is loaded."""

    def __init__(self, plane: RewardDataPlane, metrics: RewardMetrics) -> None:
        self._plane = plane
        self._metrics = metrics

    async def Score(self, request: reward_pb2.ScoreRequest, context: "Context") -> reward_pb2.ScoreResponse:
        """Scores items; each has a score or an error of its own."""
        facts = self._plane.facts
        items = convert.items(request, facts, self._plane.limits)
        outcomes = await self._plane.score(items, deadline_of(context))
        self._metrics.count(outcomes)
        if request.all_or_nothing:
            for outcome in outcomes:
                if not isinstance(outcome, Score):
                    raise outcome
        return convert.score_response(outcomes, facts)

    async def GetModel(
        self, request: reward_pb2.GetModelRequest, context: "Context"
    ) -> reward_pb2.GetModelResponse:
        """Describes the model."""
        return convert.get_model_response(self._plane.facts, self._plane.limits)
