"""Rank and Compare over a real server: they say what the scores say, and name what is wrong."""

import math

import grpc
import pytest
from grpc import aio
from hypothesis import given, strategies as st
from reward_server import chat, options, pair, serving, violations

from plaudit.v1 import reward_pb2
from services.batching import CallLimits
from services.reward.ranking import order, preference
from services.reward.service import reward_service

RESPONSES = [" is good", " is dull and lifeless", " was wonderful", " is not worth seeing"]


@pytest.fixture
async def client(tiny_reward):
    async for made in serving(reward_service(options(tiny_reward))):
        yield made


async def rank(client, candidates, **fields):
    if "chat" not in fields:
        fields = {"text": "the film", **fields}
    return await client.stub.Rank(reward_pb2.RankRequest(candidates=candidates, **fields), timeout=30)


async def compare(client, first, second, **fields):
    if "chat" not in fields:
        fields = {"text": "the film", **fields}
    request = reward_pb2.CompareRequest(first=first, second=second, **fields)
    return await client.stub.Compare(request, timeout=30)


async def refused(call):
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return violations(caught.value)


def turns(*messages):
    return chat(*messages).chat


# --- the maths ---


def test_equal_rewards_share_a_rank_and_keep_their_order():
    assert order([0.5, 2.0, 0.5, 3.0, 0.5, -1.0]) == [(3, 1), (1, 2), (0, 3), (2, 3), (4, 3), (5, 6)]
    assert order([]) == []


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), max_size=12))
def test_a_rank_is_one_more_than_the_number_that_is_better(rewards):
    ranked = order(rewards)
    assert sorted(index for index, _ in ranked) == list(range(len(rewards)))
    for index, rank_ in ranked:
        assert rank_ == 1 + sum(other > rewards[index] for other in rewards)


def test_preferences_by_hand():
    assert preference(1.0, 1.0, 1.0) == 0.5
    assert preference(math.log(3), 0.0, 1.0) == pytest.approx(0.75)
    assert preference(2 * math.log(3), 0.0, 2.0) == pytest.approx(0.75)
    assert preference(0.0, math.log(4), 1.0) == pytest.approx(0.2)
    assert (preference(1e6, 0.0, 1.0), preference(0.0, 1e6, 1.0)) == (1.0, 0.0)


@given(st.floats(-50, 50), st.floats(-50, 50), st.floats(0.1, 10))
def test_one_of_the_two_is_preferred(first, second, temperature):
    both = preference(first, second, temperature) + preference(second, first, temperature)
    assert both == pytest.approx(1.0)


# --- Rank ---


async def test_the_order_is_that_of_the_scores(client):
    scores = [
        result.reward for result in (await client.score(*(pair("the film", r) for r in RESPONSES))).results
    ]
    response = await rank(client, RESPONSES)
    best_first = sorted(range(4), key=lambda index: -scores[index].reward)
    assert [one.index for one in response.ranked] == best_first
    assert [one.rank for one in response.ranked] == [1, 2, 3, 4]
    for one in response.ranked:
        assert one.reward.raw_reward == pytest.approx(scores[one.index].raw_reward, abs=1e-5)
    assert response.model == (await client.model()).model
    assert response.timing.compute_seconds > 0


async def test_equal_responses_share_a_rank(client):
    response = await rank(client, [RESPONSES[0], RESPONSES[1], RESPONSES[0]])
    ranks = {one.index: one.rank for one in response.ranked}
    assert ranks[0] == ranks[2]
    assert sorted(ranks.values()) in ([1, 1, 3], [1, 2, 2])


async def test_only_the_best_are_returned(client):
    every = await rank(client, RESPONSES)
    best = await rank(client, RESPONSES, top_n=2)
    assert [one.index for one in best.ranked] == [one.index for one in every.ranked][:2]
    assert len((await rank(client, RESPONSES, top_n=9)).ranked) == 4
    assert (await refused(rank(client, RESPONSES, top_n=0)))[0][0] == "top_n"


async def test_a_chat_gets_each_candidate_as_its_next_turn(client):
    asked = [("system", "be brief"), ("user", "how was it?")]
    whole = [chat(*asked, ("assistant", response)) for response in RESPONSES]
    scores = [result.reward.reward for result in (await client.score(*whole)).results]
    response = await rank(client, RESPONSES, chat=turns(*asked))
    for one in response.ranked:
        assert one.reward.reward == pytest.approx(scores[one.index], abs=1e-5)


async def test_a_bad_candidate_is_unranked_and_its_neighbours_are_ranked(client):
    bad = [RESPONSES[0], "", "<|end|>", "é" * 500, RESPONSES[1]]
    for asked in ({}, {"chat": turns(("user", "how was it?"))}):
        response = await rank(client, bad, **asked)
        assert sorted(one.index for one in response.ranked) == [0, 4]
        assert [one.index for one in response.unranked] == [1, 2, 3]
        fields = [one.error.field_violations[0].field for one in response.unranked]
        assert fields == ["candidates[1]", "candidates[2]", "candidates[3]"]


async def test_all_or_nothing_names_every_bad_candidate(client):
    found = await refused(rank(client, [RESPONSES[0], "", "<|end|>"], all_or_nothing=True))
    assert [field for field, _ in found] == ["candidates[1]", "candidates[2]"]


async def test_what_is_wrong_with_the_prompt_fails_the_call(client):
    assert (await refused(rank(client, RESPONSES, text="<|end|>")))[0][0] == "text"
    asked = turns(("user", "a"), ("user", "<|start|>"))
    assert (await refused(rank(client, RESPONSES, chat=asked)))[0][0] == "chat.messages[1].content"
    asked = turns(("<|start|>", "a"))
    assert (await refused(rank(client, RESPONSES, chat=asked)))[0][0] == "chat.messages[0].role"
    request = reward_pb2.RankRequest(candidates=RESPONSES)
    assert (await refused(client.stub.Rank(request)))[0][0] == "prompt"
    assert (await refused(rank(client, [])))[0][0] == "candidates"


async def test_a_model_without_a_template_refuses_the_chat(foreign_reward):
    async for client in serving(reward_service(options(foreign_reward))):
        assert (await refused(rank(client, RESPONSES, chat=turns(("user", "a")))))[0][0] == "chat"


async def test_more_candidates_than_a_call_may_carry(tiny_reward):
    service = reward_service(options(tiny_reward), CallLimits(max_items=2))
    async for client in serving(service):
        found = await refused(rank(client, RESPONSES))
        assert found == [("candidates", "holds 4 items, a call at most 2; split it")]


# --- Compare ---


async def test_the_probability_follows_from_the_raw_rewards(client):
    response = await compare(client, RESPONSES[0], RESPONSES[1])
    difference = response.first.raw_reward - response.second.raw_reward
    assert difference != 0
    assert response.temperature == 1.0
    assert response.probability == pytest.approx(1 / (1 + math.exp(-difference)), rel=1e-6)
    swapped = await compare(client, RESPONSES[1], RESPONSES[0])
    assert swapped.probability == pytest.approx(1 - response.probability, abs=1e-6)
    assert (await compare(client, RESPONSES[0], RESPONSES[0])).probability == 0.5
    assert response.model == (await client.model()).model


async def test_a_temperature_makes_it_less_sure(client):
    plain = await compare(client, RESPONSES[0], RESPONSES[1])
    warm = await compare(client, RESPONSES[0], RESPONSES[1], temperature=10.0)
    assert warm.temperature == 10.0
    assert abs(warm.probability - 0.5) < abs(plain.probability - 0.5)


async def test_a_chat_is_compared_turn_for_turn(client):
    asked = turns(("user", "how was it?"))
    response = await compare(client, RESPONSES[0], RESPONSES[1], chat=asked)
    alone = await client.score(chat(("user", "how was it?"), ("assistant", RESPONSES[0])))
    assert response.first.raw_reward == pytest.approx(alone.results[0].reward.raw_reward, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
async def test_a_temperature_that_cannot_be(client, temperature):
    assert (await refused(compare(client, "a", "b", temperature=temperature)))[0][0] == "temperature"


async def test_bad_responses_are_named(client):
    assert [field for field, _ in await refused(compare(client, "", "<|end|>"))] == ["first", "second"]
    assert (await refused(compare(client, "a", "b", text="<|end|>")))[0][0] == "text"
    request = reward_pb2.CompareRequest(first="a", second="b")
    assert (await refused(client.stub.Compare(request)))[0][0] == "prompt"


async def test_too_long_is_an_error_unless_truncation_is_asked_for(client):
    long = "é" * 500
    assert (await refused(compare(client, long, "b")))[0][0] == "first"
    right = reward_pb2.ScoreOptions(truncation=reward_pb2.TRUNCATION_RIGHT)
    response = await compare(client, long, "b", options=right)
    assert response.first.truncation == reward_pb2.TRUNCATION_RIGHT
    assert response.second.truncation == reward_pb2.TRUNCATION_UNSPECIFIED
    assert response.first.truncated_tokens > 0 == response.second.truncated_tokens


async def test_an_option_that_is_not_known(client):
    for field in ("truncation", "priority"):
        odd = reward_pb2.ScoreOptions(**{field: 99})
        assert (await refused(compare(client, "a", "b", options=odd)))[0][0] == f"options.{field}"
