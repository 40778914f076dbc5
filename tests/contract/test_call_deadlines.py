"""The server sees a deadline on every call of every client; a stream that outlives its own is followed by
another."""

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Iterator
from concurrent import futures

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from reward_server import options

import plaudit
from plaudit import AsyncRewardClient, PushManifest, RewardClient, TensorSpec
from plaudit.clients import score_many, streams
from plaudit.clients.calls import AsyncClient, Client
from plaudit.clients.channel import DEFAULT_TIMEOUT
from plaudit.clients.following import WATCH_SECONDS
from plaudit.clients.reward import SERVICE as REWARD
from plaudit.clients.streams import STREAM_SECONDS
from plaudit.health import HealthClient
from plaudit.v1 import policy_pb2, reference_pb2, reward_pb2, trainer_pb2, weights_pb2
from services.reward.service import reward_service
from services.rpc.background import serve_in_background

HEALTH = "/grpc.health.v1.Health/Check"
MODULES = (policy_pb2, reference_pb2, reward_pb2, trainer_pb2, weights_pb2)
SERVICES = [each for module in MODULES for each in module.DESCRIPTOR.services_by_name.values()]
METHODS = {
    **{f"/{each.full_name}/{method.name}": method for each in SERVICES for method in each.methods},
    HEALTH: health_pb2.DESCRIPTOR.services_by_name["Health"].methods_by_name["Check"],
}
WATCHED = ["/plaudit.v1.TrainerService/WatchRun", "/plaudit.v1.WeightsService/WatchPolicyVersion"]

MANIFEST = PushManifest("run", 0, 1, [TensorSpec("a", "float32", (1,))], "0" * 64)
PAIR = ("the film is", " good")
ARGUMENTS = {
    "generate": (["The"],),
    "compute_logprobs": ([[1, 2]], [1]),
    "score": ([PAIR],),
    "score_many": ([PAIR],),
    "rank": ("The film", [" one", " two"]),
    "compare": ("The film", " one", " two"),
    "push": (MANIFEST, [bytes(4)]),
    "stage": (MANIFEST, [bytes(4)]),
    "get_push": ("id",),
    "commit": ("id",),
    "abort": ("id",),
    "load_from_uri": ("file:///a.safetensors", MANIFEST),
}
NAMED = {"generate": {"max_new_tokens": 1}}


class Listener(grpc.GenericRpcHandler):
    """Knows every method, remembers how long each call had left, and answers as little as it can."""

    def __init__(self):
        self.left = {}

    @contextlib.contextmanager
    def hears(self, name):
        """Fails if no call comes within the block."""
        before = sum(map(len, self.left.values()))
        yield
        assert sum(map(len, self.left.values())) > before, f"{name} makes no call; give it its ARGUMENTS here"

    def service(self, details):
        method = METHODS[details.method]
        kind = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[method.client_streaming, method.server_streaming]

        def answer(_, context):
            self.left.setdefault(details.method, []).append(context.time_remaining())
            if method.server_streaming:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "no streams here")
            if method.name == "BeginPush":
                return weights_pb2.BeginPushResponse(push_id="id", total_bytes=4)
            return GetMessageClass(method.output_type)()

        read = GetMessageClass(method.input_type).FromString
        return kind(answer, read, lambda message: message.SerializeToString())


@pytest.fixture
def listener():
    listener = Listener()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers([listener])
    listener.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield listener
    server.stop(0).wait(10)


def kinds(base):
    """Every client of the package of this base."""
    exported = [getattr(plaudit, name) for name in plaudit.__all__]
    return [each for each in exported if inspect.isclass(each) and issubclass(each, base)]


def names(kind):
    """The public methods of a client."""
    return [name for name, value in vars(kind).items() if not name.startswith("_") and callable(value)]


def ask(client, name):
    """Calls a method, and takes the first of what it streams; how the call ends is of no interest here."""
    with contextlib.suppress(Exception):
        result = getattr(client, name)(*ARGUMENTS.get(name, ()), **NAMED.get(name, {}))
        if isinstance(result, Iterator):
            next(result)


async def ask_async(client, name):
    """As ask."""
    with contextlib.suppress(Exception):
        result = getattr(client, name)(*ARGUMENTS.get(name, ()), **NAMED.get(name, {}))
        await (anext(result) if isinstance(result, AsyncIterator) else result)


def ask_everything(listener):
    for kind in [*kinds(Client), HealthClient]:
        for name in names(kind):
            with listener.hears(f"{kind.__name__}.{name}"), kind(listener.address) as client:
                ask(client, name)


async def ask_everything_async(listener):
    for kind in kinds(AsyncClient):
        for name in names(kind):
            with listener.hears(f"{kind.__name__}.{name}"):
                async with kind(listener.address) as client:
                    await ask_async(client, name)


def test_every_call_of_every_client_has_a_deadline(listener):
    ask_everything(listener)
    assert set(listener.left) == set(METHODS)
    check(listener)


def test_every_call_of_every_async_client_has_a_deadline(listener):
    asyncio.run(ask_everything_async(listener))
    assert set(listener.left) == set(METHODS) - {HEALTH}, "which has a blocking client only"
    check(listener)


def check(listener):
    for path, left in listener.left.items():
        longest = {f"/{REWARD}/ScoreStream": STREAM_SECONDS, **dict.fromkeys(WATCHED, WATCH_SECONDS)}
        assert all(seconds is not None for seconds in left), path
        most = 1.01 * longest.get(path, DEFAULT_TIMEOUT)  # gRPC's header rounds up
        assert max(left) <= most, path


# ---- a stream whose deadline passes ----

TEXTS = [("the film is", f" number {number}") for number in range(10)]


@pytest.fixture(scope="module")
def reward_server(tiny_reward):
    with serve_in_background(lambda: reward_service(options(tiny_reward))) as server:
        yield server


def test_a_stream_ends_with_its_deadline_and_another_goes_on(reward_server, connect, monkeypatch):
    """Without a pause or a word, and nothing is lost or given twice: the texts come round and round."""
    opened = []

    class Stream(streams.ScoreStream):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            opened.append(self)

    monkeypatch.setattr(streams, "STREAM_SECONDS", 0.2)
    monkeypatch.setattr(score_many, "ScoreStream", Stream)
    taken = []

    def items():
        while sum(each.has_answered for each in opened) <= 3:
            taken.append(TEXTS[len(taken) % len(TEXTS)])
            yield taken[-1]

    client = connect(RewardClient, AsyncRewardClient, reward_server.address)
    expected = client.score(TEXTS).rewards
    got = [result.reward for result in client.score_many(items(), window=8)]
    assert len(got) == len(taken)
    assert got == pytest.approx([expected[number % len(TEXTS)] for number in range(len(got))], abs=1e-5)
    assert len(set(expected)) > 1
