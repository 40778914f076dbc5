"""The shell on a service of the tests' own, with a method of each kind: what holds here holds for all."""

import asyncio
import logging
import re
import threading
import urllib.request

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import aio
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

import services.rpc.health
from services import errors
from services.compute import CancelFlag, ComputeThread
from services.rpc.background import serve_in_background
from services.rpc.scopes import METHODS
from services.rpc.server import (
    MAX_HEALTH_BYTES,
    OptionError,
    PortTaken,
    ServerOptions,
    Service,
    start_server,
)

NAME = "plaudit.test.Echo"
KINDS = ("Unary", "ClientStream", "ServerStream", "BidiStream")
GRPC_TYPES = dict(zip(KINDS, ("unary", "client_stream", "server_stream", "bidi_stream"), strict=True))
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Echo:
    """Answers with what it was asked, after `behave`, which a test may replace."""

    def __init__(self):
        self.release_load = asyncio.Event()
        self.release_load.set()
        self.load_error = None
        self.drained = False

    async def behave(self, context):
        pass

    async def load(self):
        await self.release_load.wait()
        if self.load_error:
            raise self.load_error
        return "echo: loaded"

    async def drain(self):
        self.drained = True

    async def unary(self, request, context):
        await self.behave(context)
        return request

    async def client_stream(self, requests, context):
        await self.behave(context)
        return b"".join([request async for request in requests])

    async def server_stream(self, request, context):
        await self.behave(context)
        for byte in request:
            yield bytes([byte])

    async def bidi_stream(self, requests, context):
        await self.behave(context)
        async for request in requests:
            yield request

    def register(self, server):
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "ClientStream": grpc.stream_unary_rpc_method_handler(self.client_stream),
            "ServerStream": grpc.unary_stream_rpc_method_handler(self.server_stream),
            "BidiStream": grpc.stream_stream_rpc_method_handler(self.bidi_stream),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))

    def service(self):
        return Service("echo", (NAME,), self.register, self.load, self.drain)


@pytest.fixture
async def echo():
    return Echo()


@pytest.fixture
async def server(echo):
    async with start_server(echo.service()) as running:
        yield running


@pytest.fixture
async def channel(server):
    async with aio.insecure_channel(server.address) as opened:
        yield opened


async def three_bytes():
    for byte in b"abc":
        yield bytes([byte])


async def nothing():
    return
    yield


async def call(channel, kind="Unary", payload=b"abc", requests=three_bytes, **options):
    """The whole answer and the trailing metadata of a call of any kind."""
    path = f"/{NAME}/{kind}"
    if kind == "Unary":
        made = channel.unary_unary(path)(payload, **options)
    elif kind == "ClientStream":
        made = channel.stream_unary(path)(requests(), **options)
    elif kind == "ServerStream":
        made = channel.unary_stream(path)(payload, **options)
    else:
        made = channel.stream_stream(path)(requests(), **options)
    if kind.endswith("nary") or kind == "ClientStream":
        answer = await made
    else:
        answer = b"".join([part async for part in made])
    return answer, dict(await made.trailing_metadata())


async def failure(channel, kind="Unary", **options):
    # Nothing is sent: grpc.aio clients lose the status of a stream that ends while they still write.
    with pytest.raises(aio.AioRpcError) as caught:
        await call(channel, kind, requests=nothing, **options)
    return caught.value


def raising(error):
    async def behave(context):
        raise error

    return behave


def health(channel):
    return health_pb2_grpc.HealthStub(channel)


async def check(channel, name):
    return (await health(channel).Check(health_pb2.HealthCheckRequest(service=name))).status


def sample(service, name, **labels):
    return service.metrics.registry.get_sample_value(name, labels)


# --- the four kinds ---


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_of_method_works_under_all_interceptors(channel, server, kind):
    await server.wait_ready()
    assert (await call(channel, kind))[0] == b"abc"


async def test_an_unknown_method_is_unimplemented(channel, server):
    await server.wait_ready()
    with pytest.raises(aio.AioRpcError) as caught:
        await channel.unary_unary(f"/{NAME}/Nope")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_messages_above_grpcs_default_limit_pass(server):
    await server.wait_ready()
    big = bytes(8 << 20)
    async with aio.insecure_channel(server.address, [("grpc.max_receive_message_length", 64 << 20)]) as wide:
        assert (await call(wide, payload=big))[0] == big


# --- loading ---


async def test_listens_and_lives_but_is_not_ready_while_the_model_loads(echo):
    echo.release_load.clear()
    async with start_server(echo.service()) as server, aio.insecure_channel(server.address) as channel:
        assert await check(channel, "") == SERVING
        assert await check(channel, NAME) == NOT_SERVING
        for kind in KINDS:
            error = await failure(channel, kind)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert "loading" in error.details()
            assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
        echo.release_load.set()
        assert await server.wait_ready() == "echo: loaded"
        assert await check(channel, NAME) == SERVING
        assert (await call(channel))[0] == b"abc"


async def test_a_model_that_cannot_be_loaded_never_gets_ready(echo):
    echo.load_error = RuntimeError("no such folder")
    async with start_server(echo.service()) as server, aio.insecure_channel(server.address) as channel:
        with pytest.raises(RuntimeError, match="no such folder"):
            await server.wait_ready()
        assert await check(channel, NAME) == NOT_SERVING
    assert not echo.drained


async def test_stopping_while_the_model_loads_does_not_wait_for_it(echo):
    echo.release_load.clear()
    async with start_server(echo.service()):
        pass
    assert not echo.drained


# --- watchers of the health service ---


def watch(channel, name=NAME):
    return health(channel).Watch(health_pb2.HealthCheckRequest(service=name))


async def heard(watching):
    async with asyncio.timeout(10):
        return (await watching.read()).status


async def test_a_watcher_hears_of_each_change_after_another_has_left(echo):
    echo.release_load.clear()
    async with start_server(echo.service()) as server, aio.insecure_channel(server.address) as channel:
        stays, leaves = watch(channel), watch(channel)
        assert [await heard(stays), await heard(leaves)] == [NOT_SERVING] * 2
        leaves.cancel()
        await left(1)
        comes = watch(channel)
        assert await heard(comes) == NOT_SERVING
        echo.release_load.set()
        assert [await heard(stays), await heard(comes)] == [SERVING] * 2
        comes.cancel()
        await left(1)
        await server.stop()
        assert await heard(stays) == NOT_SERVING
        with pytest.raises(aio.AioRpcError) as caught:
            await heard(stays)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def left(count):
    """Waits until so many watchers are left."""
    async with asyncio.timeout(10):
        while sum("Health/Watch" in task.get_name() for task in asyncio.all_tasks()) > count:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_the_port_for_health_alone_is_watched_in_the_same_way(echo):
    echo.release_load.clear()
    options = ServerOptions(health_address="127.0.0.1:0")
    async with (
        start_server(echo.service(), options) as server,
        aio.insecure_channel(server.health_address) as channel,
    ):
        stays, leaves = watch(channel), watch(channel)
        assert [await heard(stays), await heard(leaves)] == [NOT_SERVING] * 2
        leaves.cancel()
        await left(1)
        echo.release_load.set()
        assert await heard(stays) == SERVING


async def test_that_port_takes_no_large_message(echo):
    """Nobody there is asked who it is."""
    options = ServerOptions(health_address="127.0.0.1:0")
    async with (
        start_server(echo.service(), options) as server,
        aio.insecure_channel(server.health_address) as channel,
    ):
        with pytest.raises(aio.AioRpcError) as caught:
            await check(channel, "x" * MAX_HEALTH_BYTES)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await check(channel, "") == SERVING


async def test_of_watchers_there_are_only_so_many(channel, server, monkeypatch):
    monkeypatch.setattr(services.rpc.health, "MOST_WATCHERS", 2)
    await server.wait_ready()
    first, second = watch(channel), watch(channel)
    assert [await heard(first), await heard(second)] == [SERVING] * 2
    with pytest.raises(aio.AioRpcError, match="too many watch already; use Check") as caught:
        await heard(watch(channel))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await check(channel, NAME) == SERVING
    first.cancel()
    await left(1)
    assert await heard(watch(channel)) == SERVING


async def test_a_watcher_of_an_unknown_name_is_told_so_and_hears_of_no_other(channel, server):
    await server.wait_ready()
    watching = watch(channel, "no.such.Service")
    assert await heard(watching) == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    with pytest.raises(aio.AioRpcError) as caught:
        await check(channel, "no.such.Service")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    await server.stop()
    with pytest.raises(aio.AioRpcError):
        await heard(watching)


# --- errors ---


@pytest.mark.parametrize("kind", KINDS)
async def test_a_refusal_keeps_its_code_and_details_in_every_kind(echo, channel, server, kind):
    await server.wait_ready()
    echo.behave = raising(errors.InvalidInput.at("prompts[3].token_ids[17]", "is 9; use less"))
    error = await failure(channel, kind)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    found = error_details_pb2.BadRequest()
    status = rpc_status.from_call(error)
    assert status.details[0].Unpack(found)
    assert found.field_violations[0].field == "prompts[3].token_ids[17]"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "raised", [ValueError("secret"), SystemExit("secret"), errors.ServiceError("secret")]
)
async def test_a_fault_is_an_id_for_the_caller_and_a_stack_for_the_log(
    echo, channel, server, kind, raised, caplog
):
    await server.wait_ready()
    echo.behave = raising(raised)
    error = await failure(channel, kind)
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in error.details()
    error_id = re.search("internal error ([0-9a-f]{16})", error.details())[1]
    (record,) = [one for one in caplog.records if error_id in one.getMessage()]
    told = logging.Formatter().format(record)
    assert "Traceback" in told
    assert told.endswith(type(raised).__name__) and "secret" not in told, "the text may hold a prompt"
    echo.behave = Echo().behave
    assert (await call(channel, kind))[0] == b"abc"


async def test_an_abort_by_the_handler_stays_as_it_is(echo, channel, server):
    async def behave(context):
        await context.abort(grpc.StatusCode.OUT_OF_RANGE, "own words")

    await server.wait_ready()
    echo.behave = behave
    error = await failure(channel)
    assert (error.code(), error.details()) == (grpc.StatusCode.OUT_OF_RANGE, "own words")


async def abort_too_late(context):
    await context.abort(grpc.StatusCode.NOT_FOUND, "own words")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "refuse", [abort_too_late, raising(errors.Conflict("taken"))], ids=["aborts", "raises"]
)
async def test_a_refusal_of_a_caller_who_has_left_is_a_cancelled_call(echo, kind, refuse, caplog):
    started = asyncio.Event()

    async def behave(context):
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await refuse(context)

    echo.behave, service = behave, echo.service()
    async with start_server(service) as server, aio.insecure_channel(server.address) as channel:
        await server.wait_ready()
        asked = asyncio.create_task(call(channel, kind))
        await started.wait()
        asked.cancel()
        await handled(service, "Cancelled", kind)
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not told, told[0].getMessage()


async def test_overload_says_when_to_come_back(echo, channel, server):
    await server.wait_ready()
    echo.behave = raising(errors.Overloaded("full", retry_after=0.25))
    error = await failure(channel)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "250"


# --- request ids ---


@pytest.mark.parametrize("kind", KINDS)
async def test_the_callers_request_id_comes_back(channel, server, kind):
    await server.wait_ready()
    _, trailing = await call(channel, kind, metadata=(("x-request-id", "mine-1"),))
    assert trailing["x-request-id"] == "mine-1"


async def test_a_request_id_is_made_where_none_came_and_is_there_on_errors(echo, channel, server):
    await server.wait_ready()
    _, first = await call(channel)
    _, second = await call(channel, metadata=(("x-request-id", "not fit, with blanks"),))
    assert len({first["x-request-id"], second["x-request-id"], "not fit, with blanks"}) == 3
    echo.behave = raising(errors.Conflict("taken"))
    error = await failure(channel, metadata=(("x-request-id", "mine-2"),))
    assert dict(error.trailing_metadata())["x-request-id"] == "mine-2"


async def test_each_call_is_one_log_line_and_health_is_none(channel, server, caplog):
    await server.wait_ready()
    with caplog.at_level(logging.INFO, "services.rpc.calls"):
        await call(channel)
        await check(channel, "")
    lines = [record.getMessage() for record in caplog.records if record.name == "services.rpc.calls"]
    assert re.fullmatch(rf"{NAME}/Unary OK \d+\.\d+ s", lines[0])
    assert not any("Health" in line for line in lines)


# --- token ---


@pytest.fixture
async def guarded(echo, monkeypatch):
    monkeypatch.setitem(METHODS, NAME, dict.fromkeys(KINDS, "score"))
    async with start_server(echo.service(), ServerOptions(token="s3cret")) as running:
        await running.wait_ready()
        async with aio.insecure_channel(running.address) as opened:
            yield opened


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("header", [None, "", "s3cret", "Basic s3cret", "Bearer wrong", "Bearer s3cret2"])
async def test_without_the_token_no_kind_of_call_passes(guarded, kind, header):
    metadata = () if header is None else (("authorization", header),)
    error = await failure(guarded, kind, metadata=metadata)
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "s3cret" not in error.details()


@pytest.mark.parametrize("kind", KINDS)
async def test_with_the_token_calls_pass(guarded, kind):
    assert (await call(guarded, kind, metadata=(("authorization", "Bearer s3cret"),)))[0] == b"abc"
    assert (await call(guarded, kind, metadata=(("authorization", "bearer s3cret"),)))[0] == b"abc"


async def test_health_is_open_and_reflection_is_not(guarded):
    assert await check(guarded, NAME) == SERVING
    with pytest.raises(aio.AioRpcError) as caught:
        await listed_services(guarded, nothing)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


# --- deadlines and cancellation ---


class Blocking:
    """Work in a compute thread that goes on until it is told to stop."""

    def __init__(self):
        self.thread = ComputeThread("blocking")
        self.flag = CancelFlag()
        self.started = threading.Event()
        self.opened = threading.Event()

    def work(self):
        self.started.set()
        while not self.flag.is_set() and not self.opened.wait(0.001):
            pass

    async def behave(self, context):
        await self.thread.run(self.work, cancel=self.flag)


@pytest.fixture
async def blocking(echo):
    made = Blocking()
    echo.behave = made.behave
    yield made
    made.opened.set()
    await made.thread.close()


async def wait_for_thread(event):
    assert await asyncio.to_thread(event.wait, 10)


async def test_health_answers_while_a_forward_runs(channel, server, blocking):
    await server.wait_ready()
    forward = asyncio.create_task(call(channel))
    await wait_for_thread(blocking.started)
    assert await check(channel, NAME) == SERVING
    assert not forward.done()
    blocking.opened.set()
    assert (await forward)[0] == b"abc"


async def handled(echo_service, code, kind="Unary"):
    """Waits until the server has counted one call of that code."""
    labels = {"grpc_type": GRPC_TYPES[kind], "grpc_service": NAME, "grpc_method": kind, "grpc_code": code}
    async with asyncio.timeout(10):
        while not sample(echo_service, "grpc_server_handled_total", **labels):  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_a_deadline_stops_the_work(echo, blocking):
    service = echo.service()
    async with start_server(service) as server, aio.insecure_channel(server.address) as channel:
        await server.wait_ready()
        error = await failure(channel, timeout=0.2)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        async with asyncio.timeout(10):
            assert await blocking.thread.run(lambda: "the thread is free") == "the thread is free"
        assert blocking.flag.is_set()
        await handled(service, "DeadlineExceeded")


async def test_a_cancel_by_the_caller_stops_the_work(echo, blocking):
    service = echo.service()
    async with start_server(service) as server, aio.insecure_channel(server.address) as channel:
        await server.wait_ready()
        made = channel.unary_unary(f"/{NAME}/Unary")(b"abc")
        await wait_for_thread(blocking.started)
        made.cancel()
        async with asyncio.timeout(10):
            assert await blocking.thread.run(lambda: "the thread is free") == "the thread is free"
        assert blocking.flag.is_set()
        await handled(service, "Cancelled")


# --- metrics ---


@pytest.mark.parametrize("kind", KINDS)
async def test_calls_and_messages_are_counted_by_kind(echo, kind):
    service = echo.service()
    labels = {"grpc_type": GRPC_TYPES[kind], "grpc_service": NAME, "grpc_method": kind}
    async with start_server(service) as server, aio.insecure_channel(server.address) as channel:
        await server.wait_ready()
        await call(channel, kind)
        await handled(service, "OK", kind)
        echo.behave = raising(errors.InvalidInput.at("x", "y"))
        await failure(channel, kind)
        await handled(service, "InvalidArgument", kind)
    assert sample(service, "grpc_server_started_total", **labels) == 2
    assert sample(service, "grpc_server_handling_seconds_count", **labels) == 2
    streams_in, streams_out = kind in ("ClientStream", "BidiStream"), kind in ("ServerStream", "BidiStream")
    assert sample(service, "grpc_server_msg_received_total", **labels) == (3 if streams_in else 2)
    assert sample(service, "grpc_server_msg_sent_total", **labels) == (3 if streams_out else 1)


async def test_two_servers_of_a_process_count_apart(echo):
    one, other = echo.service(), Echo().service()
    async with (
        start_server(one) as server,
        start_server(other),
        aio.insecure_channel(server.address) as opened,
    ):
        await server.wait_ready()
        await call(opened)
        await handled(one, "OK")
    labels = {"grpc_type": "unary", "grpc_service": NAME, "grpc_method": "Unary"}
    assert sample(one, "grpc_server_started_total", **labels) == 1
    assert sample(other, "grpc_server_started_total", **labels) is None


async def test_the_endpoint_exports_the_server_and_its_model(echo):
    service = echo.service()
    service.metrics.model.set("m", "w", "t", "float32", run_id="r", step=7)
    service.metrics.model.set("m", "w2", "t", "float32", run_id="r", step=8)
    async with start_server(service, ServerOptions(metrics_address="127.0.0.1:0")) as server:
        await server.wait_ready()
        url = f"http://{server.metrics_address}/metrics"
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
    lines = text.splitlines()
    assert "plaudit_ready 1.0" in lines
    assert "plaudit_model_step 8.0" in lines
    (info,) = [line for line in lines if line.startswith("plaudit_model_info{")]
    assert 'weights_sha256="w2"' in info
    assert any(line.startswith("plaudit_build_info{") for line in lines)
    assert any(line.startswith("plaudit_event_loop_lag_seconds_bucket") for line in lines)
    assert any(line.startswith("process_resident_memory_bytes") for line in lines)
    assert not any("_created" in line for line in lines)
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(urllib.request.urlopen, url)


async def test_the_loops_lag_is_sampled(echo):
    service = echo.service()
    async with start_server(service), asyncio.timeout(10):
        while not sample(service, "plaudit_event_loop_lag_seconds_count"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert sample(service, "plaudit_event_loop_tasks") >= 2, "this test and the sampling"


# --- reflection, channelz ---


async def listing():
    yield reflection_pb2.ServerReflectionRequest(list_services="")


async def listed_services(channel, requests=listing):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    answers = [answer async for answer in stub.ServerReflectionInfo(requests())]
    return {one.name for one in answers[0].list_services_response.service}


async def test_reflection_lists_the_services_even_while_loading(echo):
    echo.release_load.clear()
    async with start_server(echo.service()) as server, aio.insecure_channel(server.address) as channel:
        assert {NAME, "grpc.health.v1.Health"} <= await listed_services(channel)


@pytest.mark.parametrize(("host", "there"), [("127.0.0.1", True), ("0.0.0.0", False)])
async def test_channelz_is_for_this_machine_only(echo, host, there):
    options = ServerOptions(address=f"{host}:0", insecure=True)
    assert await has_channelz(echo.service(), options) is there


async def has_channelz(service, options, **how):
    async with (
        start_server(service, options) as server,
        aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = channelz_pb2_grpc.ChannelzStub(channel)
        try:
            await stub.GetServers(channelz_pb2.GetServersRequest(), **how)
        except aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED
            return False
        return True


async def test_channelz_tells_of_sockets_and_channels(echo):
    """Also where gRPC says more of them than its messages know."""
    async with start_server(echo.service()) as server, aio.insecure_channel(server.address) as channel:
        stub = channelz_pb2_grpc.ChannelzStub(channel)
        newest, end = 0, False
        while not end:
            page = await stub.GetServers(channelz_pb2.GetServersRequest(start_server_id=newest + 1))
            newest, end = max([newest, *(one.ref.server_id for one in page.server)]), page.end
        found = await stub.GetServerSockets(channelz_pb2.GetServerSocketsRequest(server_id=newest))
        request = channelz_pb2.GetSocketRequest(socket_id=found.socket_ref[0].socket_id)
        assert (await stub.GetSocket(request)).socket.data.streams_started >= 3
        last, end, targets = 0, False, ""
        while not end:
            request = channelz_pb2.GetTopChannelsRequest(start_channel_id=last + 1)
            page = await stub.GetTopChannels(request)
            targets += " ".join(one.data.target for one in page.channel)
            last, end = max([last, *(one.ref.channel_id for one in page.channel)]), page.end
        assert server.address in targets


async def test_channelz_is_elsewhere_for_who_may_look(echo):
    options = ServerOptions(address="0.0.0.0:0", insecure=True, token="word")
    assert await has_channelz(echo.service(), options, metadata=[("authorization", "Bearer word")])


async def test_reflection_and_channelz_can_be_left_out(echo):
    options = ServerOptions(reflection=False)
    assert not await has_channelz(echo.service(), options)
    async with (
        start_server(echo.service(), options) as server,
        aio.insecure_channel(server.address) as channel,
    ):
        with pytest.raises(aio.AioRpcError) as caught:
            await listed_services(channel)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# --- starting ---


async def test_a_taken_port_is_one_clear_error(echo, server):
    with pytest.raises(PortTaken, match=r"can't listen on 127.0.0.1:\d+: .* choose another port"):
        async with start_server(Echo().service(), ServerOptions(address=server.address)):
            pass


async def test_a_taken_metrics_port_too(echo, server):
    with pytest.raises(PortTaken, match="can't listen on"):
        async with start_server(Echo().service(), ServerOptions(metrics_address=server.address)):
            pass


async def test_an_unknown_host_too(echo):
    options = ServerOptions(address="no-such-host.invalid:0", insecure=True)
    with pytest.raises(PortTaken, match="can't listen on"):
        async with start_server(echo.service(), options):
            pass


async def test_other_machines_only_when_asked_for(echo):
    with pytest.raises(OptionError, match="--insecure"):
        async with start_server(echo.service(), ServerOptions(address="0.0.0.0:0")):
            pass


# --- draining ---


async def test_a_drain_finishes_what_is_in_flight_and_admits_nothing_more(echo, blocking):
    async with start_server(echo.service()) as server, aio.insecure_channel(server.address) as channel:
        await server.wait_ready()
        watch = health(channel).Watch(health_pb2.HealthCheckRequest(service=NAME))
        assert (await watch.read()).status == SERVING
        in_flight = asyncio.create_task(call(channel))
        await wait_for_thread(blocking.started)
        stopping = asyncio.create_task(server.stop())
        assert (await watch.read()).status == NOT_SERVING
        assert await check(channel, "") == SERVING
        error = await failure(channel)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in error.details()
        assert not stopping.done()
        blocking.opened.set()
        assert (await in_flight)[0] == b"abc"
        await stopping
        assert echo.drained


async def test_a_drain_ends_what_outlives_the_grace(echo, blocking):
    options = ServerOptions(grace_s=0.05)
    async with (
        start_server(echo.service(), options) as server,
        aio.insecure_channel(server.address) as channel,
    ):
        await server.wait_ready()
        in_flight = asyncio.create_task(failure(channel))
        await wait_for_thread(blocking.started)
        await server.stop()
        assert (await in_flight).code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert blocking.flag.is_set()


async def test_stopping_twice_is_stopping_once(server):
    await asyncio.gather(server.stop(), server.stop())
    await server.stop()


async def test_no_task_is_left_behind(echo):
    before = asyncio.all_tasks()
    async with start_server(echo.service()) as server, aio.insecure_channel(server.address) as channel:
        await server.wait_ready()
        await call(channel)
    left = [task.get_coro().__qualname__ for task in asyncio.all_tasks() - before]
    ours = ("RunningServer", "ServerMetrics", "Batcher", "ComputeThread")
    assert not [name for name in left if name.startswith(ours)]


# --- from programs without an event loop ---


def test_in_the_background_of_a_sync_program():
    with (
        serve_in_background(lambda: Echo().service()) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        assert channel.unary_unary(f"/{NAME}/Unary")(b"abc", timeout=10) == b"abc"
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary(f"/{NAME}/Unary")(b"abc", timeout=1)


def test_in_the_background_a_failed_load_is_raised():
    def make():
        echo = Echo()
        echo.load_error = RuntimeError("no such folder")
        return echo.service()

    with pytest.raises(RuntimeError, match="no such folder"), serve_in_background(make):
        pass


async def test_a_caller_who_leaves_before_its_answer_is_sent_is_no_fault_in_grpcs_own_log(echo, caplog):
    grpcs = logging.getLogger("grpc._cython.cygrpc")
    async with start_server(echo.service()):
        for fault in (aio.InternalError('Failed "execute_batch"'), ValueError("a fault")):
            try:
                raise fault
            except Exception:
                grpcs.exception("raised in core by servicer method")
    told = [record.exc_info[1] for record in caplog.records if record.name == grpcs.name]
    assert [type(each) for each in told] == [ValueError]
