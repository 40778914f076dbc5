"""Who is turned away costs no reading: a message is parsed when its call has been let in, and not before."""

import threading
from contextlib import ExitStack, contextmanager

import grpc
import pytest
from guarded_servers import Loading, entry, loaded, served, wait_until, write_tokens

from services.rpc.readable import request_size
from services.rpc.server import Service

Code = grpc.StatusCode
METHODS = {
    "unary_unary": ("plaudit.v1.RewardService", "Score", "score"),
    "unary_stream": ("plaudit.v1.TrainerService", "WatchRun", "trainer:read"),
    "stream_unary": ("plaudit.v1.WeightsService", "PushChunks", "weights:push"),
    "stream_stream": ("plaudit.v1.RewardService", "ScoreStream", "score"),
}
SCOPES = sorted({scope for _, _, scope in METHODS.values()})
BIG = b"x" * 1001
"""More than the server reads."""


class Parsing:
    """A service of methods of every kind, which counts what it parses."""

    def __init__(self, **readiness):
        self.parsed, self.sizes = [], []
        self.service = Service(
            "counting",
            tuple({service for service, _, _ in METHODS.values()}),
            self._register,
            loaded,
            max_request_bytes=1000,
            **readiness,
        )

    def parse(self, data):
        self.parsed.append(data)
        return [data]

    async def answer(self, request, context):
        self.sizes.append(request_size.get())
        return request[0]

    async def answers(self, request, context):
        yield await self.answer(request, context)

    async def collect(self, requests, context):
        return b"".join([await self.answer(request, context) async for request in requests])

    async def echo(self, requests, context):
        async for request in requests:
            yield await self.answer(request, context)

    def _register(self, server):
        behaviours = dict(zip(METHODS, (self.answer, self.answers, self.collect, self.echo), strict=True))
        for kind, (service, method, _) in METHODS.items():
            make = getattr(grpc, f"{kind}_rpc_method_handler")
            handler = make(behaviours[kind], request_deserializer=self.parse)
            server.add_generic_rpc_handlers(
                [grpc.method_handlers_generic_handler(service, {method: handler})]
            )

    def received(self, kind):
        """How many messages of a method's callers are counted."""
        service, method, _ = METHODS[kind]
        return sum(
            sample.value
            for family in self.service.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "grpc_server_msg_received_total"
            and (sample.labels["grpc_service"], sample.labels["grpc_method"]) == (service, method)
        )


def ask(channel, kind, token, *messages):
    """The call's status, and its answers."""
    service, method, _ = METHODS[kind]
    by_stream, metadata = kind.startswith("stream"), [("authorization", f"Bearer {token}")] if token else []
    call = getattr(channel, kind)(f"/{service}/{method}")
    try:
        answer = call(iter(messages) if by_stream else messages[0], timeout=20, metadata=metadata)
        return Code.OK, [answer] if kind.endswith("unary") else list(answer)
    except grpc.RpcError as error:
        return error.code(), error.details()


@contextmanager
def parsing(path, *, arrives_s=60.0, **readiness):
    """A Parsing that is served, and a channel to it."""
    tokens = write_tokens(
        path / "tokens.toml",
        entry("right", *SCOPES, name="right"),
        entry("wrong", "generate", name="wrong"),
        *(entry(f"spent-{kind}", *SCOPES, name=kind, requests_per_second=0.001) for kind in METHODS),
    )
    made = Parsing(**readiness)
    with ExitStack() as stack:
        server = stack.enter_context(served(lambda: made.service, tokens, arrives_s=arrives_s))
        made.channel = stack.enter_context(grpc.insecure_channel(server.address))
        yield made


@pytest.fixture(scope="module")
def open_to_some(tmp_path_factory):
    with parsing(tmp_path_factory.mktemp("tokens")) as made:
        yield made


@pytest.fixture
def server(open_to_some):
    open_to_some.parsed.clear()
    open_to_some.sizes.clear()
    return open_to_some


@pytest.mark.parametrize("kind", METHODS)
def test_who_is_let_in_is_read(server, kind):
    assert ask(server.channel, kind, "right", b"abc") == (Code.OK, [b"abc"])
    assert (server.parsed, server.sizes) == ([b"abc"], [3])


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize(
    ("token", "code"),
    [(None, Code.UNAUTHENTICATED), ("unknown", Code.UNAUTHENTICATED), ("wrong", Code.PERMISSION_DENIED)],
)
def test_who_may_not_call_is_not_read(server, kind, token, code):
    assert ask(server.channel, kind, token, b"abc")[0] is code
    assert server.parsed == []


@pytest.mark.parametrize("kind", METHODS)
def test_who_has_had_its_share_is_not_read(server, kind):
    assert ask(server.channel, kind, f"spent-{kind}", b"abc")[0] is Code.OK
    assert ask(server.channel, kind, f"spent-{kind}", b"abc")[0] is Code.RESOURCE_EXHAUSTED
    assert server.parsed == [b"abc"]


@pytest.mark.parametrize("kind", METHODS)
def test_nobody_is_read_before_the_model_is_loaded(tmp_path, kind):
    with parsing(tmp_path, readiness=Loading()) as server:
        assert ask(server.channel, kind, "right", b"abc")[0] is Code.UNAVAILABLE
        assert server.parsed == []


@pytest.mark.parametrize("kind", METHODS)
def test_too_much_is_told_to_those_alone_who_may_call(server, kind):
    assert ask(server.channel, kind, None, BIG)[0] is Code.UNAUTHENTICATED
    assert ask(server.channel, kind, "right", BIG) == (
        Code.INVALID_ARGUMENT,
        "request: holds 1001 bytes, a call at most 1000; split it",
    )
    assert server.parsed == []


@pytest.mark.parametrize("kind", METHODS)
def test_a_message_that_is_refused_is_counted_and_that_of_a_refused_call_never_received(server, kind):
    before = server.received(kind)
    ask(server.channel, kind, None, b"abc")
    assert server.received(kind) == before
    ask(server.channel, kind, "right", BIG)
    assert server.received(kind) == before + 1


@pytest.mark.parametrize("kind", ["stream_unary", "stream_stream"])
def test_a_stream_is_read_message_by_message(server, kind):
    """And counted so; what comes after one that can't be read isn't read."""
    before = server.received(kind)
    assert ask(server.channel, kind, "right", b"a", b"bc", BIG, b"d")[0] is Code.INVALID_ARGUMENT
    assert (server.parsed, server.sizes) == ([b"a", b"bc"], [1, 2])
    assert server.received(kind) == before + 3


@contextmanager
def slow(server, kind, token=None):
    """The status of a call of whose messages none comes, and what lets them come."""
    sending = threading.Event()

    def messages():
        sending.wait(20)
        yield b"abc"

    (service, method, _), metadata = METHODS[kind], [("authorization", f"Bearer {token}")] if token else []
    call = getattr(server.channel, f"stream_{kind.partition('_')[2]}")(f"/{service}/{method}")
    try:
        with pytest.raises(grpc.RpcError) as caught:
            answer = call(messages(), timeout=20, metadata=metadata)
            list(answer)
        yield caught.value
    finally:
        sending.set()


@pytest.mark.parametrize("kind", METHODS)
def test_of_a_caller_who_is_not_known_no_message_is_even_waited_for(server, kind):
    """It may be on its way still, megabytes of it; what gRPC takes off the connection is in our memory."""
    with slow(server, kind) as error:
        assert error.code() is Code.UNAUTHENTICATED
    wait_until(lambda: server.parsed == [])


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream"])
def test_the_one_message_of_a_call_has_to_come_in_time(tmp_path, kind):
    with parsing(tmp_path, arrives_s=0.1) as server:
        with slow(server, kind, "right") as error:
            assert error.code() is Code.UNAVAILABLE
            assert error.details() == "the request wasn't there, whole, after 0.1 s; send it again"
        assert ask(server.channel, kind, "right", b"abc") == (Code.OK, [b"abc"])


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream"])
def test_a_call_without_its_message_is_told_so(server, kind):
    service, method, _ = METHODS[kind]
    call = getattr(server.channel, f"stream_{kind.partition('_')[2]}")(f"/{service}/{method}")
    with pytest.raises(grpc.RpcError) as caught:
        list(call(iter(()), timeout=20, metadata=[("authorization", "Bearer right")]))
    assert caught.value.code() is Code.INVALID_ARGUMENT
    assert caught.value.details() == "request: there is none; send one message"
