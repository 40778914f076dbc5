"""--log-texts: what people write, and what faults say of it, in log and spans; callers are told no more.

Without it they hold nothing of either: test_privacy.py.
"""

import logging
from contextlib import ExitStack

import httpx
import pytest
from gateway_server import gateway_in_background, wait_until
from prometheus_client import generate_latest
from tracers import spans_in_memory

from plaudit import Chat, Internal, InvalidArgument, PolicyClient, ReferenceClient, RewardClient
from services.gateway import routes
from services.policy.service import policy_service
from services.reference.service import reference_service
from services.reward.engine import RewardEngine
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions
from services.rpc.server import ServerOptions
from services.rpc.texts import ANNOUNCEMENT, MOST_CHARACTERS, MOST_ITEMS

ASKED = ServerOptions(log_texts=True)


class SaysWhatItReads(RewardEngine):
    """Breaks down on one letter, and says all that it read."""

    def score(self, batch):
        (tilde,) = self._loaded.tokenizer("~")["input_ids"]
        for item in batch:
            if tilde in item.ids:
                raise RuntimeError(self._loaded.tokenizer.decode(item.ids))
        return super().score(batch)


@pytest.fixture(scope="module")
def spans():
    with spans_in_memory() as exporter:
        yield exporter


@pytest.fixture(scope="module")
def services(spans, tiny_policy, tiny_reward):
    """Addresses, and the reward service's metrics."""

    def options(folder):
        return ModelOptions(str(folder), "cpu", "float32", 1)

    def rewards():
        made = reward_service(
            options(tiny_reward), None, lambda spec: SaysWhatItReads(spec.path, dtype="float32", threads=1)
        )
        registries.append(made.metrics.registry)
        return made

    registries = []
    makers = {
        "policy": lambda: policy_service(options(tiny_policy)),
        "reference": lambda: reference_service(options(tiny_policy)),
        "reward": rewards,
    }
    with ExitStack() as stack:
        found = {
            name: stack.enter_context(serve_in_background(make, ASKED)).address
            for name, make in makers.items()
        }
        gateway = gateway_in_background(found["reward"], gateway_options=ASKED)
        found["gateway"] = f"http://{stack.enter_context(gateway).address}"
        yield found, registries


@pytest.fixture
def address(services):
    return services[0]


@pytest.fixture
def lines(caplog):
    """The lines of one logger."""
    caplog.set_level(logging.INFO)
    return lambda name: [each.getMessage() for each in caplog.records if each.name == name]


def stacks(caplog):
    return [logging.Formatter().formatException(each.exc_info) for each in caplog.records if each.exc_info]


def test_prompts_and_responses_of_the_policy(address, lines):
    with PolicyClient(address["policy"]) as client:
        client.generate(["kestrel", Chat([("user", "merlin")])], max_new_tokens=2)
    asked, answered = lines("services.rpc.texts")
    assert asked.startswith("plaudit.v1.PolicyService/Generate asked {'prompts': [{'text': 'kestrel',")
    assert "'merlin'" in asked
    assert answered.startswith("plaudit.v1.PolicyService/Generate answered {") and "'text'" in answered


def test_token_ids_of_the_reference(address, lines):
    with ReferenceClient(address["reference"]) as client:
        client.compute_logprobs([[5] * (MOST_ITEMS + 4)], [1])
    asked, _ = lines("services.rpc.texts")
    assert "5, 5, '… 4 more']" in asked


def test_pairs_one_line_a_message_and_of_bounded_length(address, lines):
    items = [("kestrel\nforged line", "k" * 520), *[("a", "b")] * MOST_ITEMS]
    with RewardClient(address["reward"]) as client:
        client.score(items[:1])
        client.score(items[1:])
        client.score([("a", "b")] * (MOST_ITEMS + 9))
    asked, _, _, _, many, answered = lines("services.rpc.texts")
    assert "'kestrel\\nforged line'" in asked
    assert "\n" not in asked
    assert f"'{'k' * MOST_CHARACTERS}… 20 more characters'" in asked
    assert many.count("'prompt': 'a'") == MOST_ITEMS and "'… 9 more'" in many
    assert "'raw_reward'" in answered and "'… 9 more'" in answered


def test_streams(address, lines):
    with RewardClient(address["reward"]) as client:
        list(client.score_many([("kestrel", "b")]))
    assert any("ScoreStream asked" in line and "'kestrel'" in line for line in lines("services.rpc.texts"))
    assert any("ScoreStream answered" in line for line in lines("services.rpc.texts"))


def test_what_a_fault_says(services, spans, caplog):
    found, registries = services
    with RewardClient(found["reward"]) as client, pytest.raises(Internal) as caught:
        client.score([("kestrel", "falcon~")])
    assert "falcon" not in str(caught.value)
    assert any("RuntimeError" in stack and "falcon~" in stack for stack in stacks(caplog))
    wait_until(lambda: any("falcon~" in span.to_json() for span in spans.get_finished_spans()))
    assert b"falcon" not in generate_latest(registries[0])


def test_a_refusal_tells_its_caller_no_more(address, lines):
    with RewardClient(address["reward"]) as client, pytest.raises(InvalidArgument) as caught:
        client.score([("kestrel<|end|>", "a")], all_or_nothing=True)
    assert "kestrel" not in str(caught.value)
    assert "'kestrel<|end|>'" in lines("services.rpc.texts")[0]


def test_gateway(address, lines):
    body = {"items": [{"prompt": "kestrel", "response": "b"}] * (MOST_ITEMS + 1)}
    with httpx.Client(base_url=address["gateway"]) as http:
        assert http.get("/healthz").status_code == 200
        assert http.post("/v1/score", json=body).status_code == 200
        assert http.post("/v1/score", content=b'{"kestrel\n' * 500).status_code == 415
        assert http.post("/v1/score", content=b"[" * 9000).status_code in (400, 415)
    asked, answered, broken, _, deep, _ = lines("services.gateway.texts")
    assert asked.startswith("/v1/score asked {'items': [{'prompt': 'kestrel', 'response': 'b'},")
    assert "'… 1 more'" in asked
    assert answered.startswith("/v1/score answered {") and "'raw_reward'" in answered
    assert broken.startswith("/v1/score asked '{\"kestrel\\n") and "… 1000 more bytes'" in broken
    assert deep.endswith("… 5000 more bytes'")


def test_a_fault_of_the_gateway(address, caplog, monkeypatch):
    def fail(_):
        raise OSError("kestrel is in it")

    monkeypatch.setattr(routes.convert, "score_response", fail)
    body = {"items": [{"prompt": "kestrel", "response": "b"}]}
    answer = httpx.post(f"{address['gateway']}/v1/score", json=body)
    assert answer.status_code == 500 and "kestrel" not in answer.text
    wait_until(lambda: any("OSError: kestrel is in it" in stack for stack in stacks(caplog)))


def test_it_is_said_at_the_start(caplog, tiny_reward):
    with serve_in_background(lambda: reward_service(ModelOptions(str(tiny_reward), threads=1)), ASKED):
        pass
    assert ANNOUNCEMENT in [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
