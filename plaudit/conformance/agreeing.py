"""Checks that the ways to ask agree: Score, ScoreStream, Rank, Compare; and what stops them."""

import math
import time
from collections.abc import Sequence

import grpc

from plaudit.clients import DeadlineExceeded
from plaudit.conformance.subject import EMPTY, RESPONSES, Subject, fields_of, pair, refused
from plaudit.conformance.verdicts import Broken, Check, Skipped, expect
from plaudit.v1 import reward_pb2

DEADLINE_S = 0.2
DROPPED_WITHIN_S = 10.0
_DEADLINE_ITEMS = 512
_INVALID = grpc.StatusCode.INVALID_ARGUMENT


def _stream_is_score(subject: Subject) -> None:
    items = [*map(pair, RESPONSES), EMPTY]
    named = [reward_pb2.StreamItem(item_id=f"item {index}", item=item) for index, item in enumerate(items)]
    messages = (
        reward_pb2.ScoreStreamRequest(options=subject.options, items=named[:2]),
        reward_pb2.ScoreStreamRequest(items=named[2:]),
    )
    results = subject.score_stream(*messages)
    by_id = {result.item_id: result.result for result in results}
    expect(len(results) == len(by_id), "an item was answered twice")
    expect(by_id.keys() == {each.item_id for each in named}, f"answered were {sorted(by_id)}")
    for index, reward in enumerate(subject.rewards(*items[:-1])):
        streamed = by_id[f"item {index}"]
        expect(streamed.HasField("reward"), f"a good item has the error {streamed.error.message!r}")
        subject.expect_close(
            f"item {index} by ScoreStream and Score", streamed.reward.raw_reward, reward.raw_reward
        )
    error = by_id[named[-1].item_id].error
    expect(error.code == _INVALID.value[0], f"the error of an empty response has code {error.code}")
    fields = [violation.field for violation in error.field_violations]
    expect(any(field.endswith("pair.response") for field in fields), f"its error names {fields}")


def _rank_is_score(subject: Subject) -> None:
    candidates = (*RESPONSES[:3], "", RESPONSES[0], *RESPONSES[3:])
    response = subject.rank(*candidates)
    ranked = response.ranked
    indices = sorted([*(each.index for each in ranked), *(each.index for each in response.unranked)])
    expect(indices == [*range(len(candidates))], f"of {len(candidates)} candidates it tells of {indices}")
    expect([each.index for each in response.unranked] == [3], "the empty candidate isn't the one unranked")
    fields = [violation.field for violation in response.unranked[0].error.field_violations]
    expect(any(field.startswith("candidates[3]") for field in fields), f"its error names {fields}")
    _expect_order(ranked)
    scored = subject.rewards(*(pair(candidates[each.index]) for each in ranked))
    for each, reward in zip(ranked, scored, strict=True):
        subject.expect_close(
            f"candidate {each.index} by Rank and Score", each.reward.raw_reward, reward.raw_reward
        )


def _expect_order(ranked: Sequence[reward_pb2.RankedCandidate]) -> None:
    """Best first, equals in the request's order; 1 2 2 4."""
    right = sorted(ranked, key=lambda each: (-each.reward.reward, each.index))
    expect([*ranked] == right, f"rewards in order are {[round(each.reward.reward, 6) for each in ranked]}")
    for each in ranked:
        better = sum(other.reward.reward > each.reward.reward for other in ranked)
        expect(each.rank == better + 1, f"rank {each.rank} with {better} better ones")


def _top_n_is_held(subject: Subject) -> None:
    whole, best = subject.rank(*RESPONSES).ranked, subject.rank(*RESPONSES, top_n=2).ranked
    expect(len(best) == 2, f"top_n=2 gives {len(best)}")
    expect([each.index for each in best] == [each.index for each in whole[:2]], "they aren't the best two")
    expect(
        [each.rank for each in best] == [each.rank for each in whole[:2]],
        "they have other ranks than in the whole",
    )


def _rank_is_strict(subject: Subject) -> None:
    error = refused(
        _INVALID, "an empty candidate", lambda: subject.rank(RESPONSES[0], "", all_or_nothing=True)
    )
    fields = fields_of(error)
    expect(any(field.startswith("candidates[1]") for field in fields), f"it names {fields}")


def _compare_is_score(subject: Subject) -> None:
    first, second = RESPONSES[0], RESPONSES[2]
    scored = subject.rewards(pair(first), pair(second))
    own = subject.compare(first, second)
    right = subject.info.compare_temperature
    expect(own.temperature == right, f"temperature {own.temperature}, and GetModel says {right}")
    for answer in (own, subject.compare(first, second, temperature=2.5)):
        for name, reward, by_score in zip(
            ("first", "second"), (answer.first, answer.second), scored, strict=True
        ):
            subject.expect_close(f"{name} by Compare and Score", reward.raw_reward, by_score.raw_reward)
        gap = (answer.first.raw_reward - answer.second.raw_reward) / answer.temperature
        probability = 1 / (1 + math.exp(-gap)) if abs(gap) < 700 else float(gap > 0)
        expect(
            abs(answer.probability - probability) <= 1e-5,
            f"at temperature {answer.temperature} it is {answer.probability:.7g}, not {probability:.7g}",
        )
    expect(answer.temperature == 2.5, f"asked for temperature 2.5 it used {answer.temperature}")


def _compare_is_strict(subject: Subject) -> None:
    first, second = RESPONSES[:2]
    error = refused(_INVALID, "temperature 0", lambda: subject.compare(first, second, temperature=0.0))
    expect("temperature" in fields_of(error), f"temperature 0 names {fields_of(error)}")
    fields = fields_of(refused(_INVALID, "an empty response", lambda: subject.compare(first, "")))
    expect(any(field.startswith("second") for field in fields), f"an empty second response names {fields}")


def _components_are_told(subject: Subject) -> None:
    names = [component.name for component in subject.info.components]
    if not names:
        raise Skipped("the model has none")
    asked = reward_pb2.ScoreOptions(model=subject.model_name, include_components=True)
    items = [*map(pair, RESPONSES)]
    for reward in subject.rewards(*items, options=asked):
        found = [part.name for part in reward.components]
        expect(found == names, f"a reward has {found}, GetModel {names}")
        right = _combined(subject.info, reward)
        subject.expect_close("the reward and its components combined", reward.raw_reward, right)
    unasked = [part.name for reward in subject.rewards(*items) for part in reward.components]
    expect(not unasked, f"unasked it tells {unasked}")


def _combined(info: reward_pb2.GetModelResponse, reward: reward_pb2.Reward) -> float:
    values = [part.reward for part in reward.components]
    mean = sum(values) / len(values)
    match info.combination:
        case reward_pb2.COMBINATION_MEAN:
            return mean
        case reward_pb2.COMBINATION_MIN:
            return min(values)
        case reward_pb2.COMBINATION_MEAN_MINUS_STD:
            std = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
            return mean - info.deviation_factor * std
        case reward_pb2.COMBINATION_WEIGHTED_SUM:
            return sum(part.weight * value for part, value in zip(info.components, values, strict=True))
    raise Broken(f"combination {info.combination} of {len(values)} components")


def _deadlines_are_held(subject: Subject) -> None:
    """What has to be seen is that the server stops too: the client does so by itself."""
    before = subject.get_model(subject.model_name).queue.items
    items = [
        pair(f" number {n}.") for n in range(min(_DEADLINE_ITEMS, max(1, subject.info.limits.max_items)))
    ]
    try:
        subject.score(*items, timeout=DEADLINE_S)
    except DeadlineExceeded:
        end = time.monotonic() + DROPPED_WITHIN_S
        while (waiting := subject.get_model(subject.model_name).queue.items) > before:
            expect(
                time.monotonic() < end, f"{waiting} items are in the queue {DROPPED_WITHIN_S:g} s after it"
            )
            time.sleep(0.1)
    else:
        raise Skipped(f"it scores {len(items)} items in {DEADLINE_S:g} s")


CHECKS = (
    Check("ScoreStream", "ScoreStream answers each item once, with the reward of Score", _stream_is_score),
    Check("Rank", "Rank orders by the rewards of Score, with ties, and names who has none", _rank_is_score),
    Check("top_n", "top_n keeps the best", _top_n_is_held),
    Check("strict Rank", "Rank with all_or_nothing refuses a bad candidate by its path", _rank_is_strict),
    Check("Compare", "Compare's probability is the sigmoid of the raw rewards of Score", _compare_is_score),
    Check("strict Compare", "Compare refuses what can't be compared, by its path", _compare_is_strict),
    Check("components", "components are told if asked for, and make the reward", _components_are_told),
    Check("deadline", "work whose deadline has passed leaves the queue", _deadlines_are_held),
)
