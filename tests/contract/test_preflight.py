"""What a run asks before its first step, and the one line for each thing that doesn't fit."""

import asyncio
import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

import pytest

from lm.loading import load_causal_lm
from lm.placement import choose_placement
from lm.tokenizer import tokenizer_sha256
from services.policy.service import policy_service
from services.reference.service import reference_service
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions
from services.rpc.server import ServerOptions
from trainer.errors import ConfigError, ServiceUnreachable, Stopped
from trainer.ppo.patience import Patience
from trainer.ppo.preflight import Clients, Needs, ask, check, describe, mismatches
from trainer.ppo.run_sections import ServicesSection
from trainer.stopping import StopSignal

POLICY, REFERENCE = "services.policy[0]", "services.reference"
KINDS = {"policy": policy_service, "reference": reference_service, "reward": reward_service}


@pytest.fixture(scope="module")
def start():
    """Serves a folder on a free port for the rest of the module; returns the address."""
    with contextlib.ExitStack() as stack:

        def serve(kind, folder, dtype="float32"):
            options = ModelOptions(str(folder), "cpu", dtype, 1)
            return stack.enter_context(serve_in_background(lambda: KINDS[kind](options))).address

        yield serve


@pytest.fixture(scope="module")
def addresses(start, tiny_policy, tiny_reward, foreign_reward):
    return {
        "policy": start("policy", tiny_policy),
        "half": start("policy", tiny_policy, "bfloat16"),
        "reference": start("reference", tiny_policy),
        "reward": start("reward", tiny_reward),
        "foreign": start("reward", foreign_reward),
    }


@pytest.fixture
def needs(tiny_policy):
    loaded = load_causal_lm(str(tiny_policy), choose_placement("cpu", "float32", 1))
    return Needs(
        tokenizer_sha256=tokenizer_sha256(loaded.tokenizer),
        vocabulary_size=loaded.vocabulary_size,
        eos_token_ids=loaded.eos_token_ids,
        longest_prompt=28,
        response_length=100,
        request_size=4,
        conversations=False,
    )


@pytest.fixture
def asked(addresses):
    """(what was found, clients) for some services."""
    with contextlib.ExitStack() as stack:

        def ask_them(policy=("policy",), reward="reward"):
            section = ServicesSection(
                policy=tuple(addresses[name] for name in policy),
                reference=addresses["reference"],
                reward=addresses[reward],
            )
            clients = Clients.open(section)
            stack.callback(clients.close)
            return ask(clients, Patience(10.0)), clients

        yield ask_them


def test_services_of_one_model_fit_and_are_described(asked, needs, addresses):
    found, clients = asked()
    check(found, clients, needs)
    policy, reference, reward = describe(found, clients, needs)
    assert policy.startswith(f"policy at {addresses['policy']} (services.policy[0]): ")
    assert policy.endswith("float32, step 0")
    assert "float32" in reference
    assert reward.endswith("asked in ids (the same tokenizer)")


def test_a_foreign_reward_model_is_asked_in_text(asked, needs):
    found, clients = asked(reward="foreign")
    check(found, clients, needs)
    assert describe(found, clients, needs)[-1].endswith("asked in text (another tokenizer)")


@pytest.mark.parametrize(
    ("change", "keys", "says"),
    [
        ({"tokenizer_sha256": "f" * 64}, [POLICY, REFERENCE], "learner (model.path) ffffffffffff"),
        ({"vocabulary_size": 999}, [POLICY, REFERENCE], "a vocabulary of 300, the learner"),
        ({"response_length": 101}, [POLICY, REFERENCE, "services.reward"],
         "a context of 128 tokens; prompts of up to 28 and sampling.response_length 101 make 129"),
        ({"eos_token_ids": (7,)}, [POLICY], "the learner at (7,)"),
        ({"request_size": 1_000_000}, [POLICY], "lower sampling.request_size"),
    ],
)  # fmt: skip
def test_each_mismatch_is_one_line_with_service_value_and_key(change, keys, says, asked, needs):
    found, clients = asked()
    problems = list(mismatches(found, clients, replace(needs, **change)))
    assert [line.split(":")[0] for line in problems] == keys
    assert all(says in line for line in problems)
    with pytest.raises(ConfigError) as caught:
        check(found, clients, replace(needs, **change))
    assert caught.value.problems == tuple(problems)
    assert caught.value.exit_code == 64


def test_replicas_of_two_types_are_refused(asked, needs):
    found, clients = asked(policy=("policy", "half"))
    (line,) = mismatches(found, clients, needs)
    assert line.startswith("services.policy[1]: ")
    assert "serves bfloat16, the first replica float32" in line


def test_conversations_need_a_reward_model_that_reads_them(asked, needs):
    found, clients = asked(reward="foreign")
    (line,) = mismatches(found, clients, replace(needs, conversations=True))
    assert line.startswith("services.reward: ")
    assert "no chat template" in line


def test_a_service_that_still_loads_is_waited_for(addresses, tiny_reward):
    load_now, stop = threading.Event(), threading.Event()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"

    def slow_service():
        service = reward_service(ModelOptions(str(tiny_reward), "cpu", "float32", 1))
        load = service.load

        async def load_late():
            await asyncio.to_thread(load_now.wait)
            return await load()

        service.load = load_late
        return service

    def serve():
        with serve_in_background(slow_service, ServerOptions(address)):
            stop.wait()

    clients = Clients.open(
        ServicesSection(policy=(addresses["policy"],), reference=addresses["reference"], reward=address)
    )
    with ThreadPoolExecutor(2) as pool:
        pool.submit(serve)
        found = pool.submit(ask, clients, Patience(20.0))
        assert not wait([found], timeout=0.5).done  # bound, and says that it isn't ready
        load_now.set()
        assert found.result().reward.reward_std == 2.0
        stop.set()
    clients.close()


def test_a_service_that_never_answers_is_unreachable(addresses):
    section = ServicesSection(
        policy=(addresses["policy"],), reference=addresses["reference"], reward="127.0.0.1:9"
    )
    clients = Clients.open(section)
    with pytest.raises(ServiceUnreachable, match=r"reward at 127\.0\.0\.1:9 \(services\.reward\)") as caught:
        ask(clients, Patience(0.2))
    clients.close()
    assert caught.value.exit_code == 69


@pytest.mark.parametrize(("by", "code"), [("ask", 0), ("request", 75)])
def test_a_wish_to_stop_ends_the_wait_for_services(addresses, by, code):
    """By StopRun with 0, by SIGTERM with 75."""
    section = ServicesSection(policy=("127.0.0.1:9",), reference=addresses["reference"], reward="127.0.0.1:9")
    clients, stop = Clients.open(section), StopSignal()
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask, clients, Patience(7200.0, stop))
        with pytest.raises(TimeoutError):
            asking.result(0.3)
        getattr(stop, by)()
        with pytest.raises(
            Stopped, match=r"stopped while waiting for (policy|reward) at 127\.0\.0\.1:9"
        ) as caught:
            asking.result(30)
    clients.close()
    assert caught.value.exit_code == code


def test_the_same_replica_twice_is_refused():
    with pytest.raises(ValueError, match="names a replica twice"):
        ServicesSection(policy=("a:1", "a:1"), reference="a:2", reward="a:3")


@pytest.mark.parametrize("address", ["nohost", "host:", "host:port", ":5", "a b:5"])
def test_addresses_are_checked_before_anything_is_loaded(address):
    with pytest.raises(ValueError, match="pattern"):
        ServicesSection(policy=(address,), reference="a:2", reward="a:3")
