"""The reward clients against the real service: all that a score, an order, a stream can be asked for."""

import math
import threading

import pytest
import torch
from free_ports import free_address
from reward_server import options
from transformers import AutoModelForSequenceClassification

from plaudit import (
    AsyncRewardClient,
    Chat,
    FailedPrecondition,
    InvalidArgument,
    ItemFailure,
    NotFound,
    Reward,
    RewardClient,
)
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.server import ServerOptions

FILMS = [("the film", f" is good {number}") for number in range(700)]
MIXED = [
    FILMS[0],
    ("", ""),
    Chat([("user", "Good?"), ("assistant", "Yes.")]),
    ("the film", " is dull" * 500),
    FILMS[1],
]


@pytest.fixture(scope="module")
def address(tiny_reward):
    with serve_in_background(lambda: reward_service(options(tiny_reward))) as server:
        yield server.address


@pytest.fixture
def reward(connect, address):
    return connect(RewardClient, AsyncRewardClient, address)


def close(one, other):
    return one.token_count == other.token_count and one.raw_reward == pytest.approx(
        other.raw_reward, abs=1e-5
    )


# ---- score ----


def test_scores_are_the_models_own(reward, tiny_reward):
    ids = [40, 41, 42, 5]
    digest = reward.get_model().model.tokenizer_sha256
    (result,) = reward.score([ids], tokenizer_sha256=digest)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_reward)
    with torch.no_grad():
        raw = model(torch.tensor([ids])).logits.item()
    assert isinstance(result, Reward)
    assert result.raw_reward == pytest.approx(raw, abs=1e-5)
    assert result.reward == pytest.approx((raw - 0.25) / 2.0, abs=1e-5)
    assert result.token_count == len(ids)


def test_a_bad_item_does_not_spoil_its_neighbours(reward):
    good, empty, chat, long, other = reward.score(MIXED)
    assert [type(one) for one in (good, chat, other)] == [Reward] * 3
    assert [empty.code, long.code] == ["INVALID_ARGUMENT"] * 2
    assert empty.violations[0].field.startswith("items[1]")
    assert long.violations[0].field.startswith("items[3]")
    with pytest.raises(InvalidArgument) as caught:
        reward.score(MIXED, all_or_nothing=True)
    fields = [violation.field for violation in caught.value.violations]
    assert [field.split(".")[0] for field in fields] == ["items[1]", "items[3]"]


@pytest.mark.parametrize("malformed", [("p", "\ud800"), ("p",), (None, "r"), "text", 5, None])
def test_nor_does_one_that_cannot_even_be_sent(reward, malformed):
    items = [("the film is", " good")] * 61
    items[7:7], items[20:20], items[50:50] = [("", "")], [("x" * 500, " y")], [malformed]
    results = reward.score(items)
    assert sum(isinstance(one, Reward) for one in results) == 61
    failures = {index: one for index, one in enumerate(results) if isinstance(one, ItemFailure)}
    assert list(failures) == [7, 20, 50]
    for index, failure in failures.items():
        assert failure.code == "INVALID_ARGUMENT"
        assert all(violation.field.startswith(f"items[{index}]") for violation in failure.violations)
    with pytest.raises(InvalidArgument) as caught:
        reward.score(items, all_or_nothing=True)
    said = [violation for failure in failures.values() for violation in failure.violations]
    assert list(caught.value.violations) == said
    assert all(violation.description in str(caught.value) for violation in said)


def test_all_or_nothing_names_every_one_that_cannot_be_sent(reward):
    items = [*[5] * 12, ("the film is", " good"), ("", ""), ItemFailure("INTERNAL", "no number")]
    with pytest.raises(InvalidArgument) as caught:
        reward.score(items, all_or_nothing=True)
    named = [violation.field.partition(".")[0] for violation in caught.value.violations]
    assert [name for index, name in enumerate(named) if name not in named[:index]] == [
        f"items[{index}]" for index in (*range(12), 14)
    ]
    assert "items[14]: no number" in str(caught.value)


def test_ids_of_another_tokenizer(reward):
    with pytest.raises(FailedPrecondition) as caught:
        reward.score([[1, 2, 3]], tokenizer_sha256="0" * 64)
    assert caught.value.preconditions


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation(reward, side):
    (result,) = reward.score([MIXED[3]], truncation=side)
    assert (result.token_count, result.truncation) == (128, side)
    assert result.truncated_tokens > 0
    (whole,) = reward.score([MIXED[0]], truncation=side)
    assert (whole.truncated_tokens, whole.truncation) == (0, None)


def test_timing(reward):
    timing = reward.score([FILMS[0]], deterministic=True).timing
    assert timing.compute_seconds > 0
    assert timing.queue_seconds >= 0
    assert timing.tokenize_seconds >= 0


def test_priority_changes_no_score(reward):
    low, high = (reward.score([FILMS[0]], priority=priority)[0] for priority in ("low", "high"))
    assert close(low, high)


def test_models(reward):
    (listed,) = reward.list_models()
    info = reward.get_model()
    assert (listed.name, listed.model) == (info.name, info.model) == ("reward", info.model)
    assert reward.get_model("reward") == info
    assert info.stream_window > 0
    assert (info.combination, info.components) == ("unspecified", ())
    with pytest.raises(NotFound) as caught:
        reward.get_model("safety")
    assert caught.value.resource.name == "safety"
    for ask in (
        lambda: reward.score([FILMS[0]], model="safety"),
        lambda: reward.rank("p", ["a"], model="safety"),
        lambda: reward.compare("p", "a", "b", model="safety"),
        lambda: list(reward.score_many([FILMS[0]], model="safety")),
    ):
        with pytest.raises(NotFound):
            ask()


# ---- rank and compare ----


@pytest.mark.parametrize("prompt", ["the film", Chat([("user", "How was it?")])])
def test_rank(reward, prompt):
    candidates = [" is good", "", " is bad", " is good"]
    ranking = reward.rank(prompt, candidates)
    rewards = [candidate.reward.reward for candidate in ranking.ranked]
    assert rewards == sorted(rewards, reverse=True)
    assert sorted(candidate.index for candidate in ranking.ranked) == [0, 2, 3]
    twins = {candidate.index: candidate.rank for candidate in ranking.ranked}
    assert twins[0] == twins[3]
    (unranked,) = ranking.unranked
    assert (unranked.index, unranked.failure.code) == (1, "INVALID_ARGUMENT")
    best = reward.rank(prompt, candidates, top_n=1)
    assert [candidate.index for candidate in best.ranked] == [ranking.ranked[0].index]
    with pytest.raises(InvalidArgument) as caught:
        reward.rank(prompt, candidates, all_or_nothing=True)
    assert caught.value.violations[0].field.startswith("candidates[1]")


def test_compare(reward):
    comparison = reward.compare("the film", " is good", " is bad", temperature=0.5)
    difference = comparison.first.raw_reward - comparison.second.raw_reward
    assert comparison.temperature == 0.5
    assert comparison.probability == pytest.approx(1 / (1 + math.exp(-difference / 0.5)))
    other = reward.compare("the film", " is bad", " is good", temperature=0.5)
    assert other.probability == pytest.approx(1 - comparison.probability)
    assert reward.compare("the film", "a", "b").temperature == reward.get_model().compare_temperature
    with pytest.raises(InvalidArgument) as caught:
        reward.compare("the film", " is good", "")
    assert caught.value.violations[0].field.startswith("second")


# ---- score_many ----


def test_a_stream_scores_what_calls_score(reward):
    expected = reward.score(FILMS)
    results = list(reward.score_many(iter(FILMS), window=100))
    assert len(results) == len(FILMS)
    assert all(close(one, other) for one, other in zip(results, expected, strict=True))


def test_bad_items_of_a_stream(reward):
    items = [*MIXED, "text", ("the film", 3)]
    good, empty, chat, long, other, text, number = reward.score_many(items)
    assert [type(one) for one in (good, chat, other)] == [Reward] * 3
    failures = [empty, long, text, number]
    assert [type(one) for one in failures] == [ItemFailure] * 4
    assert [one.violations[0].field for one in failures] == [
        "item.pair.response",
        "item",
        "item",
        "item.pair.response",
    ]


def test_options_of_a_stream(reward):
    (result,) = reward.score_many([MIXED[3]], truncation="left", priority="low")
    assert (result.token_count, result.truncation) == (128, "left")
    digest = reward.get_model().model.tokenizer_sha256
    (result,) = reward.score_many([[5, 6, 7]], tokenizer_sha256=digest)
    assert result.token_count == 3
    with pytest.raises(FailedPrecondition):
        list(reward.score_many([[5, 6, 7]], tokenizer_sha256="0" * 64))


def test_leaving_a_stream_leaves_the_service_idle(reward):
    results = reward.score_many(FILMS * 20, window=300)
    assert isinstance(next(results), Reward)
    results.close()
    assert isinstance(reward.score([FILMS[0]], timeout=30)[0], Reward)
    for _ in range(300):
        if reward.list_models()[0].queue.items == 0:
            break
        threading.Event().wait(0.1)
    assert reward.list_models()[0].queue.items == 0


def test_a_stream_outlives_its_server(connect, tiny_reward):
    """The server drains in the middle of a stream and another takes its place: every item once, in order."""

    def serving(address):
        return serve_in_background(
            lambda: reward_service(options(tiny_reward)), ServerOptions(address=address, grace_s=0.1)
        )

    address = free_address()
    reward = connect(RewardClient, AsyncRewardClient, address)
    with serving(address):
        expected = reward.score(FILMS)
        results = reward.score_many(FILMS, window=50)
        got = [next(results) for _ in range(100)]
    with serving(address):
        got.extend(results)
    assert all(close(one, other) for one, other in zip(got, expected, strict=True))
