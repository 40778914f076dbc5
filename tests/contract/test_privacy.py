"""What people write stays in requests and answers: it is in no log line, error, metric or span of a service.

A word that nothing else holds goes through every service, the gateway, the clients and a stage of the
trainer, in good requests and in bad ones, with every logger at DEBUG.
"""

import io
import json
import logging
import re
from contextlib import ExitStack, suppress

import grpc
import httpx
import pytest
from gateway_server import gateway_in_background, wait_until
from prometheus_client import generate_latest
from tracers import spans_in_memory

from plaudit import Chat, PlauditError, PolicyClient, ReferenceClient, RewardClient
from plaudit.v1 import policy_pb2, reward_pb2, types_pb2
from services.gateway import routes
from services.oip import open_inference_pb2 as oip, open_inference_pb2_grpc
from services.policy.service import policy_service
from services.reference.service import reference_service
from services.reward.engine import RewardEngine
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions
from trainer.__main__ import main

CANARY = "kestrel"
LONG = CANARY * 200
FORGED = f"{CANARY}<|end|>"
CHAT = [("user", CANARY), ("assistant", CANARY)]
BROKEN = f"{CANARY}\ud800"


class FailsOnTilde(RewardEngine):
    """Breaks down on one letter, and says all that it read, as no engine should."""

    def score(self, batch):
        (tilde,) = self._loaded.tokenizer("~")["input_ids"]
        for item in batch:
            if tilde in item.ids:
                text = self._loaded.tokenizer.decode(item.ids)
                assert CANARY in text, "nothing would be tested"
                raise RuntimeError(text) from ValueError(text)
        return super().score(batch)


@pytest.fixture(scope="module")
def told():
    """Everything that is said while the module's tests run: log lines with their stacks, and errors."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setLevel(logging.DEBUG)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture(scope="module")
def spans():
    with spans_in_memory() as exporter:
        yield exporter


@pytest.fixture(scope="module")
def services(told, spans, tiny_policy, tiny_reward):
    """Addresses, and a function that gives all metrics as text."""
    with ExitStack() as stack:

        def start(make, folder, *more):
            service = make(ModelOptions(str(folder), "cpu", "float32", 1), None, *more)
            registries.append(service.metrics.registry)
            return service

        def serve(*what):
            return stack.enter_context(serve_in_background(lambda: start(*what))).address

        registries = []
        addresses = {
            "policy": serve(policy_service, tiny_policy),
            "reference": serve(reference_service, tiny_policy),
            "reward": serve(
                reward_service, tiny_reward, lambda spec: FailsOnTilde(spec.path, dtype="float32", threads=1)
            ),
        }
        gateway = stack.enter_context(gateway_in_background(addresses["reward"]))
        addresses["gateway"] = f"http://{gateway.address}"
        yield addresses, lambda: b"".join(map(generate_latest, registries)).decode()


@pytest.fixture
def address(services):
    return services[0]


@pytest.fixture(autouse=True)
def nothing_is_told(services, told, spans, capfd):
    """After each test: the word is nowhere."""
    yield
    caught = capfd.readouterr()
    said = "".join([told.getvalue(), *(span.to_json() for span in spans.get_finished_spans())])
    assert said, "nothing was recorded, so nothing was tested"
    for text in (said, caught.out, caught.err, services[1]()):
        assert CANARY not in text


def refused(call, *args, **how):
    """The call fails, and its error in every form says nothing of what was sent."""
    with pytest.raises(PlauditError) as caught:
        call(*args, **how)
    assert CANARY not in f"{caught.value} {caught.value!r} {caught.value.violations}"


def test_policy(address):
    with PolicyClient(address["policy"]) as client:
        client.generate([CANARY, Chat(CHAT[:1])], max_new_tokens=2, stop_strings=[CANARY])
        for bad in (LONG, FORGED, Chat([("user", FORGED)]), Chat([(FORGED, "a")]), BROKEN):
            refused(client.generate, [bad], max_new_tokens=2)
        refused(client.generate, [CANARY], max_new_tokens=0)
        refused(client.generate, [CANARY], max_new_tokens=CANARY)
        refused(client.generate, [CANARY], max_new_tokens=2, stop_token_ids=[CANARY])
        refused(client.generate, [CANARY], max_new_tokens=2, step_exactly=7)


def test_reference(address):
    with ReferenceClient(address["reference"]) as client:
        refused(client.compute_logprobs, [[CANARY, CANARY]], [1])
        refused(client.compute_logprobs, [CANARY], [1])


def test_reward(address):
    bad = [(CANARY, FORGED), (FORGED, CANARY), (CANARY, ""), (CANARY, LONG), (CANARY, BROKEN), Chat([])]
    with RewardClient(address["reward"]) as client:
        client.score([(CANARY, CANARY), Chat(CHAT)])
        for item in [*bad, [CANARY], Chat([("user", FORGED)]), Chat([(FORGED, CANARY)])]:
            refused(client.score, [item], all_or_nothing=True)
            for result in client.score_many([item]):
                assert CANARY not in str(result)
        client.rank(CANARY, [CANARY, CANARY * 2])
        refused(client.rank, FORGED, [CANARY])
        refused(client.rank, CANARY, [FORGED], all_or_nothing=True)
        client.compare(Chat(CHAT[:1]), CANARY, CANARY)
        refused(client.compare, Chat(CHAT[:1]), CANARY, FORGED)


def test_a_fault_of_ours(address, told):
    with RewardClient(address["reward"]) as client:
        refused(client.score, [(CANARY, f"{CANARY}~")])
    said = told.getvalue()
    assert re.search(r"in score\n.* raise RuntimeError\(text\) from ValueError\(text\)\nRuntimeError\n", said)
    assert "\nValueError\n" in said


def test_a_fault_of_ours_in_a_stream(address):
    with RewardClient(address["reward"]) as client:
        refused(lambda: list(client.score_many([(CANARY, f"{CANARY}~")])))


def test_a_fault_of_the_gateway(address, told, monkeypatch):
    def fail(_):
        raise OSError(f"{CANARY} is in it")

    monkeypatch.setattr(routes.convert, "score_response", fail)
    body = {"items": [{"prompt": CANARY, "response": CANARY}]}
    answer = httpx.post(f"{address['gateway']}/v1/score", json=body)
    assert answer.status_code == 500 and CANARY not in answer.text
    wait_until(lambda: "in fail\n" in told.getvalue() and "\nOSError\n" in told.getvalue())


def test_open_inference_protocol(address):
    def infer(prompt, response, **fields):
        inputs = [
            oip.ModelInferRequest.InferInputTensor(
                name=name,
                datatype="BYTES",
                shape=[1],
                contents=oip.InferTensorContents(bytes_contents=[text.encode()]),
            )
            for name, text in (("prompt", prompt), ("response", response))
        ]
        return oip.ModelInferRequest(model_name="reward", inputs=inputs, **fields)

    with grpc.insecure_channel(address["reward"]) as channel:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        stub.ModelInfer(infer(CANARY, CANARY))
        raw = [b"\x99\x00\x00\x00" + CANARY.encode()] * 2
        for bad in (infer(CANARY, FORGED), infer(CANARY, LONG), infer("", "", raw_input_contents=raw)):
            with pytest.raises(grpc.RpcError) as caught:
                stub.ModelInfer(bad)
            assert CANARY not in f"{caught.value.details()} {caught.value.trailing_metadata()}"


def test_messages_that_are_none(address):
    prompt = policy_pb2.GenerateRequest(prompts=[policy_pb2.Prompt(text=CANARY)]).SerializeToString()
    pair = types_pb2.TextPair(prompt=CANARY, response=CANARY)
    score = reward_pb2.ScoreRequest(items=[reward_pb2.ScoreItem(pair=pair)]).SerializeToString()
    calls = {("policy", "PolicyService/Generate"): prompt, ("reward", "RewardService/Score"): score}
    for (server, method), body in calls.items():
        with grpc.insecure_channel(address[server]) as channel, pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/plaudit.v1.{method}")(body + b"\xff")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert CANARY not in f"{caught.value.details()} {caught.value.trailing_metadata()}"


BODIES = {
    "/v1/score": {"items": [{"prompt": CANARY, "response": FORGED}], "all_or_nothing": True},
    "/v1/rank": {"prompt": FORGED, "candidates": [CANARY]},
    "/v1/compare": {"prompt": CANARY, "first": CANARY, "second": BROKEN},
    "/rerank": {"query": CANARY, "documents": [FORGED, {"text": CANARY}]},
    "/v1/rerank": {"query": CANARY, "texts": [CANARY, 5]},
    "/get_reward": {"query": [CANARY], "prompts": ["other"], "labels": [CANARY]},
    "/score": {"text_1": CANARY, "text_2": [FORGED], "truncate_prompt_tokens": CANARY},
    "/pooling": {"messages": [{"role": CANARY, "content": FORGED}], "task": CANARY},
}


@pytest.mark.parametrize("path", BODIES)
def test_gateway(path, address):
    body = json.dumps(BODIES[path])
    with httpx.Client(base_url=address["gateway"], headers={"content-type": "application/json"}) as http:
        for content in (
            body,
            body.replace("<|end|>", "").replace("\\ud800", ""),
            body[:-1],
            CANARY,
            f'["{CANARY}"]',
        ):
            answer = http.post(path, content=content)
            assert answer.status_code == 200 or CANARY not in answer.text, answer.text


STAGE = """
[run]
name = "r"
threads = 1
[model]
path = "{policy}"
[data]
train = "train.jsonl"
[sft]
num_train_epochs = 1
batch_size = 2
"""
GOOD = {"prompt": CANARY, "completion": CANARY}


@pytest.mark.parametrize(
    "last",
    [
        GOOD,
        {"prompt": CANARY, "completion": FORGED},
        {"prompt": BROKEN, "completion": CANARY},
        {"prompt": [CANARY], "completion": CANARY},
        {"prompt": CANARY, "completion": ""},
        {"messages": CANARY},
        f'{{"prompt": "{CANARY}"',
    ],
    ids=range(7),
)
def test_trainer(last, tmp_path, tiny_policy, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text(STAGE.format(policy=tiny_policy))
    lines = [json.dumps(GOOD), last if isinstance(last, str) else json.dumps(last)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    with suppress(SystemExit):
        assert main(["sft", "c.toml", "--debug"]) == (0 if last is GOOD else 64)
