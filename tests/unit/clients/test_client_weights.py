"""A push ends in new weights or in an abort, never in between."""

import asyncio

import grpc
import pytest
from scripted_servers import MODEL, WEIGHTS, refuse

from plaudit import (
    Aborted,
    AsyncWeightsClient,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    ModelVersion,
    PushManifest,
    TensorSpec,
    WeightsClient,
)
from plaudit.clients.to_proto import CHUNK_BYTES
from plaudit.v1 import types_pb2, weights_pb2

Code = grpc.StatusCode
MANIFEST = PushManifest("run", 0, 1, [TensorSpec("w", "float32", (400_000,))], "ff")
PIECES = [bytes([7]) * 1_000_000, bytes([8]) * 600_000]
NEW = types_pb2.ModelVersion(model_id="tiny", run_id="run", step=1, weights_sha256="ff")


def receive(requests, context):
    """Takes the whole stream and keeps it."""
    receive.chunks = list(requests)
    return weights_pb2.PushChunksResponse(received_bytes=sum(len(chunk.data) for chunk in receive.chunks))


OPENED = weights_pb2.BeginPushResponse(push_id="p-1", total_bytes=1_600_000)
COMMITTED = weights_pb2.CommitPushResponse(model=NEW)
KEPT = weights_pb2.AbortPushResponse(model=MODEL)


@pytest.fixture
def serve_weights(serve):
    def start(**changes):
        behaviours = {"BeginPush": OPENED, "PushChunks": receive, "CommitPush": COMMITTED, "AbortPush": KEPT}
        return serve(WEIGHTS, {method: [step] for method, step in {**behaviours, **changes}.items()})

    return start


def methods(server):
    return [heard.method for heard in server.heard]


def test_push(serve_weights, call):
    server = serve_weights()
    model = call("weights", server.address, "push", MANIFEST, PIECES, mode="drain")
    assert model == ModelVersion("tiny", "run", 1, "ff", "")
    assert methods(server) == ["BeginPush", "PushChunks", "CommitPush"]
    assert server.heard[0].request.manifest.weights_sha256 == "ff"
    assert server.heard[2].request.push_id == "p-1"
    assert b"".join(chunk.data for chunk in receive.chunks) == b"".join(PIECES)
    assert [len(chunk.data) for chunk in receive.chunks] == [CHUNK_BYTES] * 3 + [1_600_000 - 3 * CHUNK_BYTES]
    assert all(50 < heard.seconds_left < 61 for heard in server.heard)


def test_replicas_are_staged_first_and_committed_then(serve_weights):
    servers = [serve_weights(), serve_weights()]
    clients = [WeightsClient(server.address) for server in servers]
    pushes = [client.stage(MANIFEST, PIECES) for client in clients]
    assert [methods(server) for server in servers] == [["BeginPush", "PushChunks"]] * 2
    for client, push_id in zip(clients, pushes, strict=True):
        assert client.commit(push_id).step == 1
        client.close()


def test_refused_manifest(serve_weights, call):
    server = serve_weights(BeginPush=refuse(Code.FAILED_PRECONDITION, "step 5 is loaded"))
    with pytest.raises(FailedPrecondition, match=f"weights at {server.address}: BeginPush: step 5 is loaded"):
        call("weights", server.address, "push", MANIFEST, PIECES)
    assert methods(server) == ["BeginPush"], "nothing was opened, so nothing is aborted"


def test_a_second_push(serve_weights, call):
    server = serve_weights(BeginPush=refuse(Code.ABORTED, "another push is under way"))
    with pytest.raises(Aborted):
        call("weights", server.address, "stage", MANIFEST, PIECES)


def test_tensors_that_fail_on_the_way(serve_weights, call):
    class Gone:
        def __iter__(self):
            yield bytes(CHUNK_BYTES + 1)
            raise RuntimeError("the tensor is gone")

    server = serve_weights()
    with pytest.raises(RuntimeError, match="the tensor is gone"):
        call("weights", server.address, "push", MANIFEST, Gone())
    assert methods(server)[-1] == "AbortPush"
    assert "CommitPush" not in methods(server)
    assert server.calls("AbortPush")[0].request.push_id == "p-1"


def test_a_stream_that_is_refused_half_way(serve_weights, call):
    def stop_reading(requests, context):
        next(requests)
        refuse(Code.INVALID_ARGUMENT, "more bytes than announced")(requests, context)

    server = serve_weights(PushChunks=stop_reading)
    with pytest.raises(InvalidArgument, match="more bytes than announced"):
        call("weights", server.address, "push", MANIFEST, [bytes(CHUNK_BYTES)] * 200)
    assert methods(server) == ["BeginPush", "PushChunks", "AbortPush"]


def test_a_digest_that_does_not_match(serve_weights, call):
    server = serve_weights(CommitPush=refuse(Code.DATA_LOSS, "digest aa, announced ff"))
    with pytest.raises(DataLoss, match="announced ff"):
        call("weights", server.address, "push", MANIFEST, PIECES)
    assert methods(server)[-2:] == ["CommitPush", "AbortPush"]


def test_the_first_error_is_told_if_the_abort_fails_too(serve_weights, call):
    server = serve_weights(
        CommitPush=refuse(Code.DATA_LOSS, "digest"), AbortPush=refuse(Code.NOT_FOUND, "no push 'p-1' here")
    )
    with pytest.raises(DataLoss):
        call("weights", server.address, "push", MANIFEST, PIECES)


def test_a_slow_server_cannot_hold_a_push_for_ever(serve_weights, call):
    server = serve_weights(PushChunks=lambda request, context: server.hang(request, context))
    with pytest.raises(DeadlineExceeded, match="PushChunks: no answer"):
        call("weights", server.address, "push", MANIFEST, PIECES, timeout=1)
    assert methods(server)[-1] == "AbortPush"


def test_an_unknown_mode_gives_the_push_up(serve_weights, call):
    server = serve_weights()
    with pytest.raises(InvalidArgument, match="in_place, drain"):
        call("weights", server.address, "push", MANIFEST, PIECES, mode="later")
    assert "CommitPush" not in methods(server)


async def test_a_cancelled_push_is_aborted(serve_weights):
    server = serve_weights(PushChunks=lambda request, context: server.hang(request, context))
    async with AsyncWeightsClient(server.address) as client:
        push = asyncio.create_task(client.push(MANIFEST, PIECES))
        assert await asyncio.to_thread(server.busy.wait, 30)
        push.cancel()
        with pytest.raises(asyncio.CancelledError):
            await push
    assert methods(server) == ["BeginPush", "PushChunks", "AbortPush"]


def test_ctrl_c_aborts(serve_weights):
    server = serve_weights()

    class Interrupted(WeightsClient):
        def _call(self, method, request, timeout):
            if method.name == "CommitPush":
                raise KeyboardInterrupt
            return super()._call(method, request, timeout)

    with Interrupted(server.address) as client, pytest.raises(KeyboardInterrupt):
        client.push(MANIFEST, PIECES)
    assert methods(server)[-1] == "AbortPush"
