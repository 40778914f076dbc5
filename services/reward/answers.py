"""From the reward service's own words to its messages; convert.py is the way in."""

import re
from collections.abc import Sequence

from lm.errors import InputError
from plaudit.v1 import reward_pb2, types_pb2
from services.batching import CallLimits
from services.errors import InvalidInput, Violation
from services.reward.interface import ComponentFacts, Outcome, RewardModel, Timing
from services.reward.items import ModelFacts, Score
from services.reward.models import STREAM_WINDOW
from services.reward.ranking import order
from services.rpc import convert

COMBINATIONS = {
    "": reward_pb2.COMBINATION_UNSPECIFIED,
    "mean": reward_pb2.COMBINATION_MEAN,
    "min": reward_pb2.COMBINATION_MIN,
    "mean_minus_std": reward_pb2.COMBINATION_MEAN_MINUS_STD,
    "weighted_sum": reward_pb2.COMBINATION_WEIGHTED_SUM,
}
SIDES = {"left": reward_pb2.TRUNCATION_LEFT, "right": reward_pb2.TRUNCATION_RIGHT}


def reward(score: Score, with_components: bool) -> reward_pb2.Reward:
    """The score of one item."""
    message = reward_pb2.Reward(
        raw_reward=score.raw_reward, reward=score.reward, token_count=score.token_count
    )
    if score.truncation:
        message.truncated_tokens = score.truncated_tokens
        message.truncation = SIDES[score.truncation]
    for part in score.components if with_components else ():
        message.components.add(name=part.name, raw_reward=part.raw_reward, reward=part.reward)
    return message


def result(outcome: Outcome, with_components: bool) -> reward_pb2.ScoreResult:
    """A score, or why there is none."""
    if isinstance(outcome, Score):
        return reward_pb2.ScoreResult(reward=reward(outcome, with_components))
    return reward_pb2.ScoreResult(error=convert.item_error(outcome))


def timing(seconds: Timing) -> reward_pb2.Timing:
    """Where the time went."""
    return reward_pb2.Timing(
        tokenize_seconds=seconds.tokenize, queue_seconds=seconds.queue, compute_seconds=seconds.compute
    )


def all_scores(outcomes: Sequence[Outcome]) -> list[Score]:
    """The strict form: every item's score.

    Raises InvalidInput with the fields of every bad item, or the first error of another kind.
    """
    failed = [outcome for outcome in outcomes if not isinstance(outcome, Score)]
    other = next((error for error in failed if not isinstance(error, InputError | InvalidInput)), None)
    if other is not None:
        raise other
    if failed:
        raise InvalidInput([violation for error in failed for violation in violations(error)])
    return [outcome for outcome in outcomes if isinstance(outcome, Score)]


def violations(error: Exception) -> tuple[Violation, ...]:
    """The fields that an item's error names."""
    if isinstance(error, InputError):
        return (Violation(error.field, error.description),)
    return error.violations if isinstance(error, InvalidInput) else ()


def outside_paths(outcomes: Sequence[Outcome], names: Sequence[str], prompt_turns: int) -> list[Outcome]:
    """Errors of items that were made of a prompt and responses, in the words of the request.

    `names` are the fields of the responses, under which they were scored; `prompt_turns` the messages of a
    chat before them. Raises InvalidInput for what is wrong with the prompt they share.
    """
    found: list[Outcome] = []
    for outcome, name in zip(outcomes, names, strict=True):
        if isinstance(outcome, InputError | InvalidInput):
            told = [
                Violation(_outside(each.field, name, prompt_turns), each.description)
                for each in violations(outcome)
            ]
            outcome = InvalidInput(told)
            if told[0].field != name:
                raise outcome
        found.append(outcome)
    return found


def _outside(field: str, name: str, prompt_turns: int) -> str:
    inside = field.removeprefix(name)
    if inside.startswith(".pair.prompt"):
        return "text"
    turn = re.match(r"\.chat(\.messages(?:\[(\d+)\])?.*)", inside)
    if turn is None:
        return name
    if turn[2] is None:
        return "chat"
    return f"chat{turn[1]}" if int(turn[2]) < prompt_turns else name


def ranked(
    message: reward_pb2.RankResponse, outcomes: Sequence[Outcome], top_n: int | None, with_components: bool
) -> None:
    """Fills in the order, and those that have none."""
    scored = [(index, each) for index, each in enumerate(outcomes) if isinstance(each, Score)]
    for place, rank in order([score.reward for _, score in scored])[:top_n]:
        index, score = scored[place]
        message.ranked.add(index=index, rank=rank, reward=reward(score, with_components))
    for index, outcome in enumerate(outcomes):
        if not isinstance(outcome, Score):
            message.unranked.add(index=index, error=convert.item_error(outcome))


def get_model_response(model: RewardModel, limits: CallLimits) -> reward_pb2.GetModelResponse:
    """All there is to know about a model."""
    facts = model.facts
    return reward_pb2.GetModelResponse(
        model=model_version(facts),
        dtype=convert.data_type(facts.dtype),
        vocabulary_size=facts.vocabulary_size,
        context_length=facts.context_length,
        reward_mean=facts.reward_mean,
        reward_std=facts.reward_std,
        has_chat_template=facts.has_chat_template,
        limits=convert.call_limits(limits),
        name=model.name,
        stream_window=STREAM_WINDOW,
        compare_temperature=model.compare_temperature,
        combination=COMBINATIONS[model.combination],
        deviation_factor=model.deviation_factor,
        components=map(_component, model.components),
        queue=convert.queue_depth(model),
    )


def list_models_response(models: Sequence[RewardModel]) -> reward_pb2.ListModelsResponse:
    """Their names and versions."""
    return reward_pb2.ListModelsResponse(
        models=[
            reward_pb2.ListedModel(
                name=model.name, model=model_version(model.facts), queue=convert.queue_depth(model)
            )
            for model in models
        ]
    )


def model_version(facts: ModelFacts) -> types_pb2.ModelVersion:
    """A reward model is always as it was on disk: no run, step 0."""
    return types_pb2.ModelVersion(
        model_id=facts.model_id,
        weights_sha256=facts.weights_sha256,
        tokenizer_sha256=facts.tokenizer_sha256,
    )


def _component(component: ComponentFacts) -> reward_pb2.ComponentInfo:
    return reward_pb2.ComponentInfo(
        name=component.name,
        weight=component.weight,
        model=model_version(component.facts) if component.facts else None,
    )
