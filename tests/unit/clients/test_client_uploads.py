"""A push goes on where it was cut, as often as that helps, and never for ever."""

import grpc
import pytest
from google.rpc import error_details_pb2
from scripted_servers import MODEL, WEIGHTS, refuse, refuse_plainly
from test_client_weights import MANIFEST, NEW

from plaudit import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from plaudit.clients import upload
from plaudit.clients.upload import MOST_FRUITLESS
from plaudit.v1 import weights_pb2

Code = grpc.StatusCode
DATA = bytes(range(256)) * 40
PIECES = [memoryview(DATA)[:5000], DATA[5000:5001], b"", DATA[5001:]]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Small chunks, and no pauses between the tries."""
    monkeypatch.setattr(upload, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(upload, "FIRST_PAUSE", 0.0)


class Receiver:
    """A server's side of a push: `cuts` are how many chunks each stream brings before it breaks."""

    def __init__(self, *cuts, error=None):
        self.data, self.cuts = bytearray(), list(cuts)
        self.error = error or refuse(Code.UNAVAILABLE, "cut", pushback_ms=-1)

    def take(self, requests, context):
        limit = self.cuts.pop(0) if self.cuts else None
        for count, chunk in enumerate(requests):
            if count == limit:
                self.error(requests, context)
            assert chunk.offset == len(self.data)
            self.data += chunk.data
        return weights_pb2.PushChunksResponse(received_bytes=len(self.data))

    def tell(self, request, context):
        return weights_pb2.GetPushResponse(
            push_id=request.push_id,
            state=weights_pb2.PUSH_STATE_OPEN,
            received_bytes=len(self.data),
            total_bytes=len(DATA),
        )


@pytest.fixture
def serve_push(serve):
    def start(receiver, opened=0, **changes):
        behaviours = {
            "BeginPush": weights_pb2.BeginPushResponse(
                push_id="p-1", total_bytes=len(DATA), received_bytes=opened
            ),
            "PushChunks": receiver.take,
            "GetPush": receiver.tell,
            "CommitPush": weights_pb2.CommitPushResponse(model=NEW),
            "AbortPush": weights_pb2.AbortPushResponse(model=MODEL),
        }
        return serve(WEIGHTS, {method: [step] for method, step in {**behaviours, **changes}.items()})

    return start


def counts(server):
    return [len(server.calls(method)) for method in ("PushChunks", "GetPush", "CommitPush", "AbortPush")]


@pytest.mark.parametrize("cuts", [(0,), (3,), (1, 2, 3), (10,), (1,) * 10])
def test_it_goes_on_with_what_is_missing(serve_push, call, cuts):
    receiver = Receiver(*cuts)
    server = serve_push(receiver)
    assert call("weights", server.address, "push", MANIFEST, PIECES).step == 1
    assert receiver.data == DATA
    assert counts(server) == [len(cuts) + 1, len(cuts), 1, 0]
    assert {heard.request.push_id for heard in server.calls("GetPush")} == {"p-1"}


def test_an_answer_that_was_lost_is_not_sent_for_again(serve_push, call):
    """All bytes came, and only then the stream broke."""
    receiver = Receiver()

    def take_and_break(requests, context):
        receiver.take(requests, context)
        receiver.error(requests, context)

    server = serve_push(receiver, PushChunks=take_and_break)
    assert call("weights", server.address, "push", MANIFEST, PIECES).step == 1
    assert counts(server) == [1, 1, 1, 0]


@pytest.mark.parametrize("opened", [1, 4096, len(DATA)])
def test_a_push_that_was_open_is_gone_on_with(serve_push, call, opened):
    receiver = Receiver()
    receiver.data += DATA[:opened]
    server = serve_push(receiver, opened)
    assert call("weights", server.address, "push", MANIFEST, PIECES).step == 1
    assert receiver.data == DATA
    assert counts(server) == [int(opened < len(DATA)), 0, 1, 0]


def test_the_stream_before_may_still_have_brought_something(serve_push, call):
    failure = error_details_pb2.PreconditionFailure()
    failure.violations.add(type="OFFSET", subject="p-1", description="the server holds 2000 bytes")
    receiver = Receiver(2, error=refuse(Code.FAILED_PRECONDITION, "the server holds 2000 bytes", failure))
    server = serve_push(receiver)
    assert call("weights", server.address, "push", MANIFEST, PIECES).step == 1
    assert receiver.data == DATA


def test_breaks_without_progress_come_to_an_end(serve_push, call):
    server = serve_push(Receiver(*[0] * 50))
    with pytest.raises(Unavailable, match="PushChunks: cut"):
        call("weights", server.address, "push", MANIFEST, PIECES)
    assert counts(server) == [MOST_FRUITLESS + 1, MOST_FRUITLESS, 0, 1]


def test_the_time_for_all_of_them_holds(serve_push, call, monkeypatch):
    monkeypatch.setattr(upload, "FIRST_PAUSE", 60.0)
    monkeypatch.setattr(upload, "LONGEST_PAUSE", 60.0)
    server = serve_push(Receiver(0, 0))
    with pytest.raises(Unavailable):
        call("weights", server.address, "push", MANIFEST, PIECES, timeout=5)
    assert counts(server) == [1, 0, 0, 1]


def test_each_try_has_what_is_left_of_the_time(serve_push, call):
    server = serve_push(Receiver(1, 1))
    call("weights", server.address, "push", MANIFEST, PIECES, timeout=20)
    left = [heard.seconds_left for heard in server.heard if heard.method in ("PushChunks", "GetPush")]
    assert len(left) == 5
    assert all(10 < seconds < 20.5 for seconds in left), "not the 60 that each call has by itself"


def test_a_server_that_forgot_the_push(serve_push, call):
    receiver = Receiver(2)
    server = serve_push(receiver, GetPush=refuse(Code.NOT_FOUND, "no push 'p-1' here"))
    with pytest.raises(NotFound, match="GetPush: no push 'p-1' here"):
        call("weights", server.address, "push", MANIFEST, PIECES)
    assert counts(server) == [1, 1, 0, 1]


def test_a_push_that_was_superseded(serve_push, call):
    failure = error_details_pb2.PreconditionFailure()
    failure.violations.add(type="DRIVER", subject="b", description="run 'b' drives this policy now")
    error = refuse(Code.FAILED_PRECONDITION, "run 'b' drives this policy now", failure)
    server = serve_push(Receiver(2, error=error))
    with pytest.raises(FailedPrecondition, match="run 'b' drives"):
        call("weights", server.address, "push", MANIFEST, PIECES)
    assert counts(server) == [1, 0, 0, 1]


def test_a_generator_is_refused_before_anything_is_opened(serve_push, call):
    server = serve_push(Receiver())
    with pytest.raises(InvalidArgument, match="pieces: is an iterator") as refused:
        call("weights", server.address, "push", MANIFEST, iter(PIECES))
    assert [violation.field for violation in refused.value.violations] == ["pieces"]
    assert server.heard == []


@pytest.mark.parametrize("method", ["BeginPush", "GetPush", "CommitPush", "AbortPush"])
def test_all_but_the_chunks_are_sent_again(serve_push, call, method):
    receiver = Receiver(1)
    server = serve_push(receiver)
    answer = server.behaviours[method][0]
    server.behaviours[method] = [refuse_plainly(Code.UNAVAILABLE, "away"), answer]
    call("weights", server.address, "push", MANIFEST, PIECES)
    call("weights", server.address, "abort", "p-1")
    assert len(server.calls(method)) == 2
    assert receiver.data == DATA
