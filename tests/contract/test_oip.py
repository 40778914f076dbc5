"""The open inference protocol on the reward service's own port, spoken by tritonclient as released."""

import asyncio
import json
import math
import re
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2
from google.rpc import error_details_pb2
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from plaudit.v1 import reward_pb2, reward_pb2_grpc, types_pb2
from services.batching import WAITING_CALLS, CallLimits
from services.oip import open_inference_pb2 as oip, open_inference_pb2_grpc
from services.reward.engine import RewardEngine
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions
from services.rpc.metrics import release
from services.rpc.server import ServerOptions, start_server

NAME = "inference.GRPCInferenceService"
ROWS = [
    ("the film is", " good"),
    ("a dull", " and lifeless story"),
    ("", "what a wonderful performance, not worth seeing"),
]
OUTPUTS = {
    "reward": "float32",
    "raw_reward": "float32",
    "token_count": "uint32",
    "truncated_tokens": "uint32",
}


def options(folder):
    return ModelOptions(str(folder), dtype="float32", threads=1)


def triton(address, *names):
    """What triton_calls.py answers, run by this interpreter."""
    script = Path(__file__).with_name("triton_calls.py")
    done = subprocess.run(
        [sys.executable, script, address, json.dumps(ROWS), *names],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def score_items():
    pairs = (types_pb2.TextPair(prompt=prompt, response=response) for prompt, response in ROWS)
    return [reward_pb2.ScoreItem(pair=pair) for pair in pairs]


@pytest.fixture(scope="module")
def server(tiny_reward):
    with serve_in_background(lambda: reward_service(options(tiny_reward))) as running:
        yield running


@pytest.fixture(scope="module")
def ours(server):
    """What our own contract says of ROWS."""
    with grpc.insecure_channel(server.address) as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        return stub.Score(reward_pb2.ScoreRequest(items=score_items()), timeout=30)


def expect(found, ours):
    """Every output is our own contract's, of the type and shape that the metadata says."""
    rewards = [result.reward for result in ours.results]
    for name, dtype in OUTPUTS.items():
        expected = [getattr(reward, name) for reward in rewards]
        assert found[name] == [dtype, [len(ROWS)], pytest.approx(expected, abs=1e-6)]


# --- tritonclient ---


def test_triton_sees_a_live_and_ready_server(server):
    assert triton(server.address, "state") == [[True, True, True]]


def test_triton_reads_the_metadata(server, ours):
    ((about_server, about_model),) = triton(server.address, "metadata")
    assert about_server == {"name": "plaudit", "version": release()}
    assert about_model["name"] == "reward"
    assert about_model["versions"] == [ours.model.weights_sha256]
    assert about_model["inputs"] == [
        {"name": name, "datatype": "BYTES", "shape": ["-1"]} for name in ("prompt", "response")
    ]
    assert about_model["outputs"][0] == {"name": "reward", "datatype": "FP32", "shape": ["-1"]}
    assert [each["name"] for each in about_model["outputs"]] == list(OUTPUTS)


def test_triton_infers_what_our_own_contract_scores(server, ours):
    ((found, name, version, request_id),) = triton(server.address, "infer")
    expect(found, ours)
    assert (name, version, request_id) == ("reward", ours.model.weights_sha256, "mine")


def test_triton_infers_in_every_way_it_has(server, ours):
    columns, compressed, version, without_waiting, (ready, by_aio) = triton(
        server.address,
        "infer_columns", "infer_compressed", "infer_version", "infer_without_waiting", "infer_by_aio",
    )  # fmt: skip
    assert ready
    assert len(without_waiting) == 20
    for found in (columns, compressed, version, by_aio, *without_waiting):
        expect(found, ours)


def test_triton_gets_the_outputs_it_asks_for_in_its_order(server, ours):
    ((names, found),) = triton(server.address, "infer_some_outputs")
    assert names == ["raw_reward", "reward"]
    rewards = [result.reward.reward for result in ours.results]
    assert found["reward"] == ["float32", [3], pytest.approx(rewards, abs=1e-6)]


def test_triton_chooses_what_happens_to_long_rows(server):
    (((status, message), found),) = triton(server.address, "infer_truncated")
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert message.startswith("inputs.*[0]: has ")
    assert found["token_count"][2] == [128]
    assert found["truncated_tokens"][2][0] > 800


def test_triton_is_told_every_row_that_is_wrong(server):
    ((status, message),) = triton(server.address, "bad_rows")
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert "inputs.response[1]: is empty" in message
    assert "inputs.response[3]: holds the special token '<|pad|>'" in message
    assert "inputs.*[4]: has " in message
    assert "[0]" not in message
    assert "[2]" not in message


def test_triton_gets_the_good_rows_if_it_asks_for_the_bad_ones_as_nan(server):
    ((found, told),) = triton(server.address, "bad_rows_as_nan")
    for name in ("reward", "raw_reward"):
        assert [math.isnan(value) for value in found[name][2]] == [False, True, False, True, True]
    assert [count > 0 for count in found["token_count"][2]] == [True, False, True, False, False]
    assert sorted(told) == ["bad_rows[1]", "bad_rows[3]", "bad_rows[4]"]
    assert told["bad_rows[1]"].startswith("inputs.response[1]: is empty")
    assert told["bad_rows[3]"].startswith("inputs.response[3]: holds the special token")
    assert told["bad_rows[4]"].startswith("inputs.*[4]: has ")


def test_triton_is_told_what_is_wrong_with_a_call(server):
    (found,) = triton(server.address, "refusals")
    assert {name: tuple(told) for name, told in found.items()} == {
        "model": ("StatusCode.NOT_FOUND", "no model 'other' here; there is reward"),
        "model ready": ("StatusCode.NOT_FOUND", "no model 'other' here; there is reward"),
        "model metadata": ("StatusCode.NOT_FOUND", "no model 'other' here; there is reward"),
        "version": ("StatusCode.NOT_FOUND", "no version '1' here"),
        "version ready": ("StatusCode.NOT_FOUND", "no version '1' here"),
        "no response": wrong("inputs: lack 'response'; send prompt and response"),
        "counts": wrong("inputs.response.shape: says 2 rows, that of prompt 3; send as many"),
        "datatype": wrong("inputs.prompt.datatype: is 'FP32'; send BYTES, a text an element"),
        "shape": wrong("inputs.prompt.shape: is [1, 3]; send [N] or [N, 1] with N of at least 1"),
        "output": wrong(f"outputs[0].name: is 'score'; the outputs are {', '.join(OUTPUTS)}"),
        "classes": wrong("outputs[0].parameters.classification: isn't known; leave it out"),
        "parameter": wrong("parameters.truncate: isn't known; those there are: truncation and bad_rows"),
        "priority": wrong("parameters.priority: isn't known; those there are: truncation and bad_rows"),
        "nothing": wrong("inputs.prompt.shape: is [0]; send [N] or [N, 1] with N of at least 1"),
        "shared memory": wrong("inputs.prompt: is in shared memory, which isn't read; send the data"),
        "config": ("StatusCode.UNIMPLEMENTED", "Method not found!"),
        "repository": ("StatusCode.UNIMPLEMENTED", "Method not found!"),
        "statistics": ("StatusCode.UNIMPLEMENTED", "Method not found!"),
    }


def wrong(message):
    return "StatusCode.INVALID_ARGUMENT", message


def test_triton_and_our_client_live_in_one_process(server):
    ((rewards, found),) = triton(server.address, "beside_our_own_client")
    assert found["reward"][2] == pytest.approx(rewards, abs=1e-6)


def test_the_page_does_what_it_says(server):
    page = (Path(__file__).parents[2] / "docs/open-inference-protocol.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    script = "\n".join(blocks).replace("127.0.0.1:50052", server.address)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    both, one, reason = done.stdout.splitlines() or [done.stderr] * 3
    assert re.fullmatch(r"\[\s*-?\d\S* +-?\d\S*\s*\]", both), both
    assert re.fullmatch(r"\[\s*-?\d\S* +nan\s*\]", one), one
    assert reason.startswith("inputs.response[1]: is empty")


def test_our_copy_of_the_protocol_is_part_of_tritons(server):
    """Every message and field of ours, with number, type and repetition."""
    (theirs,) = triton(server.address, "protocol")
    messages = list(oip.DESCRIPTOR.message_types_by_name.values())
    for message in messages:  # grows while it is walked
        messages.extend(message.nested_types)
    assert len(messages) > 20
    for message in messages:
        fields = theirs[message.full_name]
        for each in message.fields:
            assert fields[str(each.number)] == [each.name, each.type, each.is_repeated], each.full_name


def test_triton_shows_the_token(tiny_reward):
    with serve_in_background(
        lambda: reward_service(options(tiny_reward)), ServerOptions(token="word")
    ) as server:
        ((live, found, *refused),) = triton(server.address, "state_with_token")
    assert live
    assert found["reward"][1] == [3]
    assert [status for status, _ in refused] == ["StatusCode.UNAUTHENTICATED"] * 2


# --- the protocol itself ---


def request(rows=ROWS, *, model="reward", shape=None, **fields):
    """Typed contents, which tritonclient doesn't send."""
    made = oip.ModelInferRequest(model_name=model, **fields)
    for name, texts in zip(("prompt", "response"), zip(*rows, strict=True), strict=True):
        tensor = made.inputs.add(name=name, datatype="BYTES", shape=shape or [len(texts)])
        tensor.contents.bytes_contents.extend(text.encode() for text in texts)
    return made


class Client:
    """The stubs of one server."""

    def __init__(self, channel):
        self.channel = channel
        self.stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        self.reward = reward_pb2_grpc.RewardServiceStub(channel)

    async def infer(self, *args, within=30, **fields):
        return await self.stub.ModelInfer(request(*args, **fields), timeout=within)

    async def refused(self, call):
        with pytest.raises(aio.AioRpcError) as caught:
            await call
        return caught.value

    async def states(self, model="reward"):
        return [
            (await self.stub.ServerLive(oip.ServerLiveRequest())).live,
            (await self.stub.ServerReady(oip.ServerReadyRequest())).ready,
            (await self.stub.ModelReady(oip.ModelReadyRequest(name=model))).ready,
        ]


@pytest.fixture
async def client(tiny_reward):
    async for made in serving(reward_service(options(tiny_reward))):
        yield made


async def serving(service):
    async with start_server(service) as server:
        await server.wait_ready()
        async with aio.insecure_channel(server.address) as channel:
            yield Client(channel)


async def test_typed_contents_are_answered_in_typed_contents(client):
    expected = await client.reward.Score(reward_pb2.ScoreRequest(items=score_items()))
    for shape in ([3], [3, 1]):
        response = await client.infer(shape=shape)
        assert not response.raw_output_contents
        assert [list(each.shape) for each in response.outputs] == [[3]] * 4
        rewards = [result.reward.reward for result in expected.results]
        assert list(response.outputs[0].contents.fp32_contents) == pytest.approx(rewards, abs=1e-6)


async def test_without_a_model_name_the_default_answers(client):
    assert (await client.infer(model="")).model_name == "reward"


async def test_violations_travel_as_details_with_the_protocols_paths(client):
    error = await client.refused(client.infer([("a", "b"), ("a", "")]))
    found = error_details_pb2.BadRequest()
    assert rpc_status.from_call(error).details[0].Unpack(found)
    assert [each.field for each in found.field_violations] == ["inputs.response[1]"]
    assert "x-request-id" in dict(error.trailing_metadata())


async def test_text_that_is_not_utf8_is_named_beside_other_bad_rows(client):
    made = request([("a", "b"), ("a", ""), ("a", "b")])
    made.inputs[0].contents.bytes_contents[2] = b"\xff"
    error = await client.refused(client.stub.ModelInfer(made))
    assert "inputs.response[1]: is empty" in error.details()
    assert "inputs.prompt[2]: isn't UTF-8 at byte 0" in error.details()


async def test_a_call_holds_as_much_as_one_of_our_own_contract(tiny_reward):
    limits = CallLimits(max_items=2, max_tokens=20)
    async for client in serving(reward_service(options(tiny_reward), limits)):
        rows = await client.refused(client.infer())
        assert rows.details() == "inputs.prompt.shape: says 3 rows, a call holds at most 2; split it"
        tokens = await client.refused(client.infer([("a", "xyz" * 7), ("a", "b")]))
        assert tokens.details().startswith("inputs: hold ")
        assert "split it" in tokens.details()


async def reflected(channel):
    """Names of the services, and of the file that describes ours."""

    async def requests():
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        yield reflection_pb2.ServerReflectionRequest(file_containing_symbol=NAME)

    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    listed, described = [answer async for answer in stub.ServerReflectionInfo(requests())]
    names = {one.name for one in listed.list_services_response.service}
    (file,) = described.file_descriptor_response.file_descriptor_proto
    return names, descriptor_pb2.FileDescriptorProto.FromString(file).package


async def test_reflection_and_health_know_the_service(client):
    names, package = await reflected(client.channel)
    assert {NAME, "plaudit.v1.RewardService"} <= names
    assert package == "inference"
    health = health_pb2_grpc.HealthStub(client.channel)
    found = await health.Check(health_pb2.HealthCheckRequest(service=NAME))
    assert found.status == health_pb2.HealthCheckResponse.SERVING


async def test_items_and_calls_are_counted_with_all_others(tiny_reward):
    service = reward_service(options(tiny_reward))
    async for client in serving(service):
        await client.infer()
        await client.reward.Score(reward_pb2.ScoreRequest(items=score_items()))
        await client.refused(client.infer([("a", "b"), ("a", "")]))
    sample = service.metrics.registry.get_sample_value
    assert sample("plaudit_reward_items_total", {"result": "scored"}) == 7
    assert sample("plaudit_reward_items_total", {"result": "error"}) == 1
    method = {"grpc_type": "unary", "grpc_service": NAME, "grpc_method": "ModelInfer"}
    assert sample("grpc_server_handled_total", {**method, "grpc_code": "OK"}) == 1
    assert sample("grpc_server_handled_total", {**method, "grpc_code": "InvalidArgument"}) == 1


# --- readiness ---


class Held:
    """A real engine that loads, and scores, when a test lets it."""

    def __init__(self, folder):
        self.load, self.compute = threading.Event(), threading.Event()
        self.computing = threading.Event()
        self._folder = folder

    def __call__(self, spec):
        assert self.load.wait(30)
        self._engine = RewardEngine(str(self._folder), dtype="float32", threads=1)
        self.facts, self.token_budget = self._engine.facts, self._engine.token_budget
        self.encode = self._engine.encode
        return self

    def score(self, batch):
        self.computing.set()
        assert self.compute.wait(30)
        return self._engine.score(batch)


async def test_it_lives_and_is_not_ready_while_the_model_loads(tiny_reward):
    held = Held(tiny_reward)
    service = reward_service(ModelOptions("held"), load_engine=held)
    async with start_server(service) as server, aio.insecure_channel(server.address) as channel:
        client = Client(channel)
        try:
            assert await client.states() == [True, False, False]
            assert (await client.stub.ServerMetadata(oip.ServerMetadataRequest())).name == "plaudit"
            unknown = await client.refused(client.stub.ModelReady(oip.ModelReadyRequest(name="other")))
            assert unknown.code() is grpc.StatusCode.NOT_FOUND
            for call in (client.stub.ModelMetadata(oip.ModelMetadataRequest(name="reward")), client.infer()):
                error = await client.refused(call)
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                assert "loading" in error.details()
        finally:
            held.load.set()
        await server.wait_ready()
        assert await client.states() == [True, True, True]


async def test_it_is_not_ready_while_the_server_drains(tiny_reward):
    held = Held(tiny_reward)
    held.load.set()
    service = reward_service(ModelOptions("held"), load_engine=held)
    async with start_server(service) as server, aio.insecure_channel(server.address) as channel:
        await server.wait_ready()
        client = Client(channel)
        in_flight = asyncio.create_task(client.infer())
        assert await asyncio.to_thread(held.computing.wait, 30)
        stopping = asyncio.create_task(server.stop())
        try:
            await asyncio.sleep(0)  # the drain begins
            assert await client.states() == [True, False, False]
            error = await client.refused(client.infer())
            assert error.code() is grpc.StatusCode.UNAVAILABLE
        finally:
            held.compute.set()
        assert len((await in_flight).outputs) == 4
        await stopping


# --- models and queues ---


async def test_models_are_asked_by_name_and_versions_are_their_own(tiny_reward, foreign_reward, tmp_path):
    file = tmp_path / "models.toml"
    file.write_text(
        f"""
        [[models]]
        name = "ours"
        path = "{tiny_reward}"
        [[models]]
        name = "theirs"
        path = "{foreign_reward}"
        [[models]]
        name = "careful"
        ensemble = ["ours", "theirs"]
        combine = "min"
        """
    )
    async for client in serving(reward_service(options(file))):
        found = {}
        for name in ("ours", "theirs", "careful"):
            response = await client.infer(model=name)
            expected = await client.reward.Score(
                reward_pb2.ScoreRequest(items=score_items(), options=reward_pb2.ScoreOptions(model=name))
            )
            rewards = [result.reward.reward for result in expected.results]
            assert list(response.outputs[0].contents.fp32_contents) == pytest.approx(rewards, abs=1e-6)
            assert (response.model_name, response.model_version) == (name, expected.model.weights_sha256)
            assert (await client.states(name)) == [True, True, True]
            found[name] = response.model_version
        assert len(set(found.values())) == 3
        error = await client.refused(client.infer(model="ours", model_version=found["theirs"]))
        assert error.code() is grpc.StatusCode.NOT_FOUND


async def waiting_items(client):
    return (await client.reward.GetModel(reward_pb2.GetModelRequest())).queue.items


async def test_calls_wait_in_the_queue_of_our_own_contract(tiny_reward):
    held = Held(tiny_reward)
    held.load.set()
    limits = CallLimits(max_items=3)
    async for client in serving(reward_service(ModelOptions("held"), limits, held)):
        request = reward_pb2.ScoreRequest(items=score_items())
        calls = [client.reward.Score(request) for _ in range(WAITING_CALLS)]
        try:
            async with asyncio.timeout(30):
                while await waiting_items(client) < 3 * WAITING_CALLS:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            error = await client.refused(client.infer())
        finally:
            held.compute.set()
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) >= 1
        await asyncio.gather(*calls)
        assert len((await client.infer()).outputs) == 4


async def test_a_score_that_is_no_number_is_never_a_tensors_element(tiny_reward):
    held = Held(tiny_reward)
    held.load.set()
    held.score = lambda batch: [(float("nan"),)] * len(batch)
    async for client in serving(reward_service(ModelOptions("held"), load_engine=held)):
        error = await client.refused(client.infer())
        assert error.code() is grpc.StatusCode.INTERNAL
