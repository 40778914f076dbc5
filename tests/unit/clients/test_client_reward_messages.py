"""The reward service's messages: what callers gave goes in, and what the service said comes out."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from refusals import refused
from scripted_servers import MODEL

from plaudit import (
    CallLimits,
    Chat,
    ComponentInfo,
    InvalidArgument,
    ItemFailure,
    ListedModel,
    ModelVersion,
    QueueDepth,
    RankedCandidate,
    Reward,
    RewardComponent,
    Scores,
    Timing,
    UnrankedCandidate,
    Violation,
)
from plaudit.clients import from_proto, to_proto_reward as to_proto
from plaudit.clients.unsendable import Unsendable
from plaudit.v1 import reward_pb2, types_pb2

VERSION = ModelVersion("tiny", "", 4, "ab", "cd")
TIMING = reward_pb2.Timing(tokenize_seconds=0.5, queue_seconds=0.25, compute_seconds=2.0)
NO_OPTIONS = to_proto.score_options()
CHAT = Chat([("user", "u"), {"role": "assistant", "content": "a"}])


# ---- requests ----


def test_options_by_their_names():
    options = to_proto.score_options(
        model="m", truncation="right", priority="high", include_components=True, deterministic=True
    )
    assert options == reward_pb2.ScoreOptions(
        model="m",
        truncation=reward_pb2.TRUNCATION_RIGHT,
        priority=reward_pb2.PRIORITY_HIGH,
        include_components=True,
        deterministic=True,
    )


def test_options_that_are_left_out_say_what_that_means():
    said = reward_pb2.ScoreOptions(
        truncation=reward_pb2.TRUNCATION_ERROR, priority=reward_pb2.PRIORITY_NORMAL
    )
    assert said == NO_OPTIONS


@pytest.mark.parametrize(
    ("named", "field", "words"),
    [
        ({"truncation": "middle"}, "options.truncation", "error, left, right"),
        ({"priority": "urgent"}, "options.priority", "low, normal, high"),
        ({"model": 7}, "options.model", "7"),
        ({"include_components": "x"}, "options.include_components", "a str"),
        ({"deterministic": None}, "options.deterministic", "None"),
    ],
)
def test_options_that_cannot_be(named, field, words):
    found, description = refused(to_proto.score_options, **named)
    assert found == field
    assert words in description


def score_request(items, all_or_nothing=False, tokenizer_sha256="", options=NO_OPTIONS):
    """The message, and the failures of items that it can't hold, None for the others."""
    request, unsendable = to_proto.score_request(items, all_or_nothing, tokenizer_sha256, options)
    return request, unsendable.put_into((None,) * len(items))


def test_items_in_all_forms():
    items = [("p", "r"), ["p", "r"], ("", ""), CHAT, [1, 2], (3, 4), [], np.array([5, 6])]
    options = to_proto.score_options(model="m")
    request, failures = score_request(items, True, "ab", options)
    assert failures == (None,) * len(items)
    forms = [item.WhichOneof("input") for item in request.items]
    assert forms == ["pair", "pair", "pair", "chat", *["token_ids"] * 4]
    assert (request.items[0].pair.prompt, request.items[0].pair.response) == ("p", "r")
    assert [(turn.role, turn.content) for turn in request.items[3].chat.messages] == [
        ("user", "u"),
        ("assistant", "a"),
    ]
    assert list(request.items[5].token_ids.ids) == [3, 4]
    assert list(request.items[7].token_ids.ids) == [5, 6]
    assert (request.all_or_nothing, request.tokenizer_sha256, request.options) == (True, "ab", options)


BAD_ITEMS = [
    ("text", ""),
    (("p", 3), ".pair.response"),
    (("p", None), ".pair.response"),
    (("p", "\ud800"), ".pair.response"),
    (("a", "b", "c"), ""),
    (("a",), ""),
    ((b"a", "b"), ""),
    ((None, "b"), ""),
    ({"prompt": "a", "response": "b"}, ""),
    ([1, None], ".token_ids.ids[1]"),
    ([2**32], ".token_ids.ids[0]"),
    (None, ".token_ids.ids"),
    (Chat([("user", "u"), ("assistant", None)]), ".chat.messages[1].content"),
    (Chat([{"role": "user"}]), ".chat.messages[0]"),
    (Chat(None), ".chat.messages"),
]


@pytest.mark.parametrize(("item", "path"), BAD_ITEMS)
def test_items_that_cannot_be_sent(item, path):
    request, (first, failure, last) = score_request([("p", "r"), item, ("q", "s")])
    assert (first, last) == (None, None)
    assert [one.WhichOneof("input") for one in request.items] == ["pair", None, "pair"]
    assert failure.code == "INVALID_ARGUMENT"
    assert [violation.field for violation in failure.violations] == [f"items[1]{path}"]
    assert failure.message.startswith(f"items[1]{path}: ")
    assert refused(to_proto.stream_item, "7", item)[0] == f"item{path}"


def test_a_failure_among_the_items_is_given_back():
    failure = ItemFailure("INTERNAL", "no number")
    _, failures = score_request([("p", "r"), failure])
    assert failures == (None, failure)


def test_one_in_the_place_of_a_list():
    assert refused(score_request, "text")[0] == "items"
    _, failures = score_request(("prompt", "response"))
    assert [failure.violations[0].field for failure in failures] == ["items[0]", "items[1]"]
    assert refused(to_proto.rank_request, "p", "text", None, False, NO_OPTIONS)[0] == "candidates"


def test_names_and_digests_that_cannot_be_sent_are_refused_by_name():
    options = to_proto.score_options()
    for make, field in (
        (lambda: to_proto.score_request([], False, "\ud800", options), "tokenizer_sha256"),
        (lambda: to_proto.score_stream_request("\ud800", options), "tokenizer_sha256"),
        (lambda: to_proto.rank_request("p", ["r"], None, "yes", options), "all_or_nothing"),
        (lambda: to_proto.get_model_request("\ud800"), "name"),
        (lambda: to_proto.score_options(model="\ud800"), "options.model"),
    ):
        assert refused(make)[0] == field


def test_a_message_of_an_error_is_short_however_long_the_value():
    _, (failure,) = score_request([("p", "x" * 10_000 + "\ud800")])
    assert len(failure.message) < 300


@given(st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_ids_are_sent_as_they_are(ids):
    message = to_proto.stream_item("3", ids)
    assert (message.item_id, list(message.item.token_ids.ids)) == ("3", ids)


def test_rank_request():
    options = to_proto.score_options(priority="low")
    request = to_proto.rank_request("p", ("a", "b"), 1, True, options)
    assert request == reward_pb2.RankRequest(
        text="p", candidates=["a", "b"], top_n=1, all_or_nothing=True, options=options
    )
    request = to_proto.rank_request(CHAT, [], None, False, NO_OPTIONS)
    assert request.WhichOneof("prompt") == "chat"
    assert len(request.chat.messages) == 2
    assert not request.HasField("top_n")
    assert to_proto.rank_request("p", ["a"], 0, False, NO_OPTIONS).HasField("top_n"), "0 is a value"


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((3, ["a"], None), "prompt"),
        (([1, 2], ["a"], None), "prompt"),
        (("p", ["a", 3], None), "candidates[1]"),
        (("p", None, None), "candidates"),
        (("p", ["a"], -1), "top_n"),
        ((Chat([("user",)]), ["a"], None), "chat.messages[0]"),
    ],
)
def test_ranks_that_cannot_be_asked_for(arguments, field):
    assert refused(to_proto.rank_request, *arguments, False, NO_OPTIONS)[0] == field


def test_compare_request():
    request = to_proto.compare_request("p", "a", "b", None, NO_OPTIONS)
    assert request == reward_pb2.CompareRequest(text="p", first="a", second="b", options=NO_OPTIONS)
    assert not request.HasField("temperature")
    assert to_proto.compare_request(CHAT, "a", "b", 0.5, NO_OPTIONS).temperature == 0.5


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((None, "a", "b", None), "prompt"),
        (("p", None, "b", None), "first"),
        (("p", "a", 3, None), "second"),
        (("p", "a", "b", "warm"), "temperature"),
    ],
)
def test_comparisons_that_cannot_be_asked_for(arguments, field):
    assert refused(to_proto.compare_request, *arguments, NO_OPTIONS)[0] == field


# ---- responses ----

GOOD = reward_pb2.ScoreResult(reward=reward_pb2.Reward(raw_reward=1.5, reward=0.5, token_count=3))
BAD = reward_pb2.ScoreResult(
    error=types_pb2.ItemError(
        code=3,
        message="items[1].pair.prompt: is empty",
        field_violations=[types_pb2.FieldViolation(field="items[1].pair.prompt", description="is empty")],
    )
)
FAILURE = ItemFailure(
    "INVALID_ARGUMENT", "items[1].pair.prompt: is empty", (Violation("items[1].pair.prompt", "is empty"),)
)


def read_scores(*results):
    response = reward_pb2.ScoreResponse(results=results, model=MODEL, timing=TIMING)
    return from_proto.scores(response, Unsendable())


def test_scores_are_a_sequence_of_rewards_and_failures():
    scores = read_scores(GOOD, BAD)
    assert list(scores) == [Reward(1.5, 0.5, 3), FAILURE]
    assert (scores[0], scores[-1], scores[:1], len(scores)) == (scores[0], FAILURE, (scores[0],), 2)
    assert (scores.model, scores.timing) == (VERSION, Timing(0.5, 0.25, 2.0))


def test_rewards_of_all_or_the_first_failure():
    rewards = read_scores(GOOD, GOOD).rewards
    assert (rewards.dtype, rewards.tolist()) == (np.float32, [0.5, 0.5])
    with pytest.raises(InvalidArgument, match="is empty") as caught:
        _ = read_scores(GOOD, BAD).rewards
    assert caught.value.violations[0].field == "items[1].pair.prompt"
    assert Scores((), VERSION, Timing(0, 0, 0)).rewards.shape == (0,)


def test_a_result_without_either_is_never_a_number():
    (result,) = read_scores(reward_pb2.ScoreResult())
    assert isinstance(result, ItemFailure)
    (result,) = read_scores(reward_pb2.ScoreResult(error=types_pb2.ItemError(code=1234, message="?")))
    assert result == ItemFailure("UNKNOWN", "?")


@pytest.mark.parametrize(
    ("number", "side"),
    [
        (reward_pb2.TRUNCATION_UNSPECIFIED, None),
        (reward_pb2.TRUNCATION_ERROR, None),
        (reward_pb2.TRUNCATION_LEFT, "left"),
        (reward_pb2.TRUNCATION_RIGHT, "right"),
        (99, None),
    ],
)
def test_truncation(number, side):
    message = reward_pb2.Reward(token_count=5, truncated_tokens=2, truncation=number)
    (reward,) = read_scores(reward_pb2.ScoreResult(reward=message))
    assert (reward.token_count, reward.truncated_tokens, reward.truncation) == (5, 2, side)


def test_components():
    message = reward_pb2.Reward(raw_reward=1.0)
    message.components.add(name="a", raw_reward=0.5, reward=0.25)
    message.components.add(name="b", raw_reward=1.5, reward=0.75)
    (reward,) = read_scores(reward_pb2.ScoreResult(reward=message))
    assert reward.components == (RewardComponent("a", 0.5, 0.25), RewardComponent("b", 1.5, 0.75))


def test_ranking():
    response = reward_pb2.RankResponse(model=MODEL, timing=TIMING)
    response.ranked.add(index=2, rank=1, reward=GOOD.reward)
    response.ranked.add(index=0, rank=1, reward=GOOD.reward)
    response.unranked.add(index=1, error=BAD.error)
    ranking = from_proto.ranking(response)
    reward = Reward(1.5, 0.5, 3)
    assert ranking.ranked == (RankedCandidate(2, 1, reward), RankedCandidate(0, 1, reward))
    assert ranking.unranked == (UnrankedCandidate(1, FAILURE),)
    assert (ranking.model, ranking.timing) == (VERSION, Timing(0.5, 0.25, 2.0))


def test_comparison():
    second = reward_pb2.Reward(raw_reward=0.5, reward=0.25, token_count=4)
    comparison = from_proto.comparison(
        reward_pb2.CompareResponse(
            probability=0.75, temperature=2.0, first=GOOD.reward, second=second, model=MODEL, timing=TIMING
        )
    )
    assert (comparison.probability, comparison.temperature) == (0.75, 2.0)
    assert (comparison.first, comparison.second) == (Reward(1.5, 0.5, 3), Reward(0.5, 0.25, 4))
    assert (comparison.model, comparison.timing) == (VERSION, Timing(0.5, 0.25, 2.0))


def test_reward_info():
    response = reward_pb2.GetModelResponse(
        model=MODEL,
        dtype=types_pb2.DATA_TYPE_F32,
        vocabulary_size=300,
        context_length=128,
        reward_mean=0.25,
        reward_std=2.0,
        has_chat_template=True,
        limits=types_pb2.CallLimits(max_items=1, max_tokens=2, max_message_bytes=3, max_request_bytes=4),
        name="safety",
        stream_window=64,
        compare_temperature=1.5,
        combination=reward_pb2.COMBINATION_MEAN_MINUS_STD,
        deviation_factor=0.5,
        queue=types_pb2.QueueDepth(items=7, tokens=2**40, bytes=2**33),
    )
    response.components.add(name="a", weight=1, model=MODEL)
    response.components.add(name="b", weight=0.5)
    info = from_proto.reward_info(response)
    assert (info.model, info.dtype, info.vocabulary_size, info.context_length) == (
        VERSION,
        "float32",
        300,
        128,
    )
    assert (info.reward_mean, info.reward_std, info.has_chat_template) == (0.25, 2.0, True)
    assert (info.limits, info.name, info.stream_window) == (CallLimits(1, 2, 3, 4), "safety", 64)
    assert (info.compare_temperature, info.combination, info.deviation_factor) == (
        1.5,
        "mean_minus_std",
        0.5,
    )
    assert info.components == (ComponentInfo("a", 1.0, VERSION), ComponentInfo("b", 0.5, None))
    assert info.queue == QueueDepth(7, 2**40, 2**33)


@pytest.mark.parametrize("number", [reward_pb2.COMBINATION_UNSPECIFIED, 99])
def test_a_plain_model_combines_nothing(number):
    info = from_proto.reward_info(reward_pb2.GetModelResponse(combination=number))
    assert (info.combination, info.components) == ("unspecified", ())


def test_listed_models():
    response = reward_pb2.ListModelsResponse()
    response.models.add(name="a", model=MODEL, queue=types_pb2.QueueDepth(items=1, tokens=2, bytes=3))
    response.models.add(name="b")
    first, second = from_proto.listed_models(response)
    assert first == ListedModel("a", VERSION, QueueDepth(1, 2, 3))
    assert (second.name, second.queue) == ("b", QueueDepth(0, 0, 0))
