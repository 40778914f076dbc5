"""What a refused call has sent is out of memory with its answer, and not only when garbage is collected."""

import gc
import time
import tracemalloc

import grpc
import pytest
from google.protobuf.message import DecodeError
from guarded_servers import loaded, served

from lm.errors import InputError
from services.rpc.server import Service

SIZE, TIMES = 2 << 20, 10
METHODS = {
    "unary_unary": ("plaudit.v1.RewardService", "Score"),
    "unary_stream": ("plaudit.v1.TrainerService", "WatchRun"),
    "stream_unary": ("plaudit.v1.WeightsService", "PushChunks"),
    "stream_stream": ("plaudit.v1.RewardService", "ScoreStream"),
}
REFUSED = grpc.StatusCode.INVALID_ARGUMENT
JUNK, WRONG = b"junk".ljust(SIZE, b"\0"), b"wrong".ljust(SIZE, b"\0")


def parse(data):
    if data == JUNK:
        raise DecodeError("junk")
    return data


async def unary(request, context):
    raise InputError("items", f"{len(request)} bytes that mean nothing")


async def stream(requests, context):
    async for request in requests:
        await unary(request, context)


async def answers(request, context):
    await unary(request, context)
    yield b""


async def echo(requests, context):
    await stream(requests, context)
    yield b""


def register(server):
    for (kind, (service, method)), behaviour in zip(
        METHODS.items(), (unary, answers, stream, echo), strict=True
    ):
        handler = getattr(grpc, f"{kind}_rpc_method_handler")(behaviour, request_deserializer=parse)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: handler})])


@pytest.fixture(scope="module")
def channel():
    names = tuple({service for service, _ in METHODS.values()})
    with (
        served(lambda: Service("refusing", names, register, loaded)) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        yield channel


@pytest.fixture
def kept():
    """Tells how many bytes are in memory that were not before, garbage included."""
    gc.collect()
    gc.disable()
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    gc.enable()


def ask(channel, kind, message):
    service, method = METHODS[kind]
    by_stream = kind.startswith("stream")
    call = getattr(channel, kind)(f"/{service}/{method}")
    with pytest.raises(grpc.RpcError) as caught:
        answer = call(iter([message]) if by_stream else message, timeout=20)
        if kind.endswith("stream"):
            next(answer)
    assert caught.value.code() is REFUSED


@pytest.mark.parametrize("message", [JUNK, WRONG], ids=["junk", "wrong"])
@pytest.mark.parametrize("kind", METHODS)
def test_nothing_of_it_stays(channel, kept, kind, message):
    for _ in range(TIMES):
        ask(channel, kind, message)
    end = time.monotonic() + 20
    while kept() > 2 * SIZE:  # one may still be on its way out
        assert time.monotonic() < end, f"{kept() >> 20} MiB of {TIMES * SIZE >> 20} are kept"
        time.sleep(0.01)
