"""plaudit.v1.RewardService: each method is convert, work, convert."""

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from plaudit.v1 import reward_pb2, reward_pb2_grpc
from services.reward import answers, convert
from services.reward.interface import Options, RewardModel, Scored, Timing, score
from services.reward.items import Item
from services.reward.metrics import RewardMetrics
from services.reward.models import RewardModels
from services.reward.ranking import preference
from services.reward.stream import ScoreStreamCall
from services.rpc.callers import caller_of, deadline_of
from services.rpc.interceptors import Readiness
from services.rpc.readable import request_size
from services.rpc.tracing import note

if TYPE_CHECKING:
    from services.rpc.calls import Context


class RewardServicer(reward_pb2_grpc.RewardServiceServicer):
    """Scores responses; called only when the models are loaded."""

    def __init__(self, models: RewardModels, metrics: RewardMetrics, readiness: Readiness) -> None:
        self._models = models
        self._metrics = metrics
        self._readiness = readiness

    async def Score(self, request: reward_pb2.ScoreRequest, context: "Context") -> reward_pb2.ScoreResponse:
        """Scores items; each has a score or an error of its own."""
        model, options = self._admit(request.options, len(request.items), context)
        scored = await score(
            model,
            convert.items(request, model.facts, self._models.limits),
            [f"items[{index}]" for index in range(len(request.items))],
            options,
        )
        self._metrics.count(scored.outcomes)
        if request.all_or_nothing:
            answers.all_scores(scored.outcomes)
        with_components = request.options.include_components
        return reward_pb2.ScoreResponse(
            results=[answers.result(outcome, with_components) for outcome in scored.outcomes],
            model=answers.model_version(model.facts),
            timing=_timing(scored.timing),
        )

    async def ScoreStream(
        self, request_iterator: AsyncIterator[reward_pb2.ScoreStreamRequest], context: "Context"
    ) -> AsyncIterator[reward_pb2.ScoreStreamResponse]:
        """Scores items as they come, and answers each as soon as it is done."""
        call = ScoreStreamCall(
            self._models,
            lambda options: _options(options, context),
            self._metrics.count,
            self._readiness.closing,
        )
        async for response in call.run(request_iterator):
            yield response

    async def Rank(self, request: reward_pb2.RankRequest, context: "Context") -> reward_pb2.RankResponse:
        """Orders the responses to one prompt."""
        model, options = self._admit(request.options, len(request.candidates), context)
        items = convert.rank_items(request, self._models.limits)
        fields = [f"candidates[{index}]" for index in range(len(items))]
        scored = await self._score_responses(model, request, items, fields, options)
        if request.all_or_nothing:
            answers.all_scores(scored.outcomes)
        response = reward_pb2.RankResponse(
            model=answers.model_version(model.facts), timing=_timing(scored.timing)
        )
        top_n = request.top_n if request.HasField("top_n") else None
        answers.ranked(response, scored.outcomes, top_n, request.options.include_components)
        return response

    async def Compare(
        self, request: reward_pb2.CompareRequest, context: "Context"
    ) -> reward_pb2.CompareResponse:
        """Says how probably the first response is preferred to the second."""
        model, options = self._admit(request.options, 2, context)
        temperature = convert.temperature(request, model.compare_temperature)
        items = convert.compare_items(request)
        scored = await self._score_responses(model, request, items, ("first", "second"), options)
        first, second = answers.all_scores(scored.outcomes)
        with_components = request.options.include_components
        return reward_pb2.CompareResponse(
            probability=preference(first.raw_reward, second.raw_reward, temperature),
            temperature=temperature,
            first=answers.reward(first, with_components),
            second=answers.reward(second, with_components),
            model=answers.model_version(model.facts),
            timing=_timing(scored.timing),
        )

    async def GetModel(
        self, request: reward_pb2.GetModelRequest, context: "Context"
    ) -> reward_pb2.GetModelResponse:
        """Describes a model."""
        return answers.get_model_response(self._models.get(request.name), self._models.limits)

    async def ListModels(
        self, request: reward_pb2.ListModelsRequest, context: "Context"
    ) -> reward_pb2.ListModelsResponse:
        """Names the models."""
        return answers.list_models_response(self._models.all)

    def _admit(
        self, message: reward_pb2.ScoreOptions, count: int, context: "Context"
    ) -> tuple[RewardModel, Options]:
        """Decides about a call of so many items, none of which has been looked at. Raises Overloaded."""
        model, options = self._models.get(message.model), _options(message, context)
        model.admit(min(count, self._models.limits.max_items), options)
        return model, options

    async def _score_responses(
        self,
        model: RewardModel,
        request: reward_pb2.RankRequest | reward_pb2.CompareRequest,
        items: Sequence[Item],
        fields: Sequence[str],
        options: Options,
    ) -> Scored:
        scored = await score(model, items, fields, options)
        self._metrics.count(scored.outcomes)
        outcomes = answers.outside_paths(scored.outcomes, fields, len(request.chat.messages))
        return Scored(outcomes, scored.timing)


def _timing(timing: Timing) -> reward_pb2.Timing:
    """As the answer has it; the call's span has it, too."""
    note(tokenize_seconds=timing.tokenize, queue_seconds=timing.queue, compute_seconds=timing.compute)
    return answers.timing(timing)


def _options(message: reward_pb2.ScoreOptions, context: "Context") -> Options:
    return convert.options(message, caller_of(context), deadline_of(context), request_size.get())
