"""A full queue behind the gateway, where all callers come from one machine."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from gateway_server import client_of, held_reward, wait_until

from services.batching import WAITING_CALLS, CallLimits

MOST = 128
FULL = WAITING_CALLS * MOST


@pytest.fixture
def overloaded(tiny_reward):
    """(client, reward service) behind which a full queue waits."""
    with (
        held_reward(tiny_reward, CallLimits(max_items=MOST)) as reward,
        client_of(reward.address) as client,
        ThreadPoolExecutor(WAITING_CALLS) as pool,
    ):
        calls = [pool.submit(score, client, MOST, f"bulk {number}") for number in range(WAITING_CALLS)]
        wait_until(lambda: reward.waiting == FULL)
        yield client, reward
        reward.engine.go_on.set()
        assert [call.result().status_code for call in calls] == [200] * WAITING_CALLS


def score(client, count, prompt):
    items = [{"prompt": prompt, "response": f" {number}"} for number in range(count)]
    return client.post("/v1/score", json={"items": items})


def test_a_large_request_hears_when_to_come_back_and_health_answers(overloaded):
    client, _ = overloaded
    answer = score(client, MOST, "another")
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["retry_after_seconds"] > 0
    assert [client.get(path).status_code for path in ("/healthz", "/readyz")] == [200, 200]


def test_a_small_request_is_let_in(overloaded):
    client, reward = overloaded
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(score, client, 1, "small")
        wait_until(lambda: reward.waiting == FULL + 1)
        reward.engine.go_on.set()
        assert call.result().json()["results"][0]["reward"]
