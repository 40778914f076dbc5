"""A caller who makes up names gets no larger share of a busy model; whom a front end names each has one."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from gateway_server import Held
from guarded_servers import entry, served, wait_until, write_tokens

from plaudit import RewardClient
from services.reward.items import Pair
from services.reward.service import reward_service
from services.rpc.command import ModelOptions


class Ordered(Held):
    """One item at a time; keeps the key of each."""

    def __init__(self, folder):
        super().__init__(folder)
        self.token_budget = 1
        self.order = []

    def score(self, batch):
        self.order += [each.key for each in batch]
        return super().score(batch)


@pytest.fixture
def engine(tiny_reward):
    held = Ordered(tiny_reward)
    yield held
    held.go_on.set()


@pytest.fixture
def server(engine, tmp_path):
    tokens = write_tokens(
        tmp_path / "tokens.toml",
        entry("many", "score", name="many"),
        entry("front", "score", name="front", speaks_for_others="true"),
        entry("other", "score", name="other"),
    )
    with served(lambda: reward_service(ModelOptions("m"), None, lambda _: engine), tokens) as running:
        yield running


def waiting(server):
    registry = server._service.metrics.registry
    return registry.get_sample_value("plaudit_reward_waiting_items", {"model": "reward"})


MADE_UP = [f" is good{number}" for number in range(8)]
OTHERS = [f" is bad{number}" for number in range(4)]


def turns(server, engine, token):
    """Whose items run in which order: those of `token` under a name each, "n"; four of another, "o"."""

    def score(token, caller, *responses):
        with RewardClient(server.address, token=token, caller=caller) as client:
            client.score([("the film", response) for response in responses])

    with ThreadPoolExecutor(10) as pool:
        calls = [pool.submit(score, "other", None, " is first")]
        wait_until(engine.begun.is_set)
        calls += [pool.submit(score, token, response.strip(), response) for response in MADE_UP]
        calls += [pool.submit(score, "other", None, *OTHERS)]
        wait_until(lambda: waiting(server) == 13)
        engine.go_on.set()
        for each in calls:
            each.result(30)
    whose = {engine.encode(Pair("the film", response), "").key: "n" for response in MADE_UP}
    return "".join(whose.get(key, "o") for key in engine.order[1:])


def test_made_up_names_share_the_turns_of_one_caller(server, engine):
    order = turns(server, engine, "many")
    assert order.count("n") == 8 and order.count("o") == 4
    assert order[:8].count("o") >= 3, order


def test_those_whom_a_front_end_names_have_turns_of_their_own(server, engine):
    order = turns(server, engine, "front")
    assert order[:8].count("o") <= 2, order
