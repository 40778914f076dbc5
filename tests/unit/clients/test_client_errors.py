"""Every way a call can fail comes out as the right exception, with what the service said."""

import pickle

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2 as rpc
from scripted_servers import POLICY, SCORED, refuse, refuse_plainly

from plaudit import (
    Aborted,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ItemFailure,
    NotFound,
    Overloaded,
    PermissionDenied,
    PlauditError,
    Precondition,
    Resource,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Unreachable,
    Violation,
)
from plaudit.clients.errors import Details, Where
from plaudit.v1 import policy_pb2, reward_pb2

Code = grpc.StatusCode
ONCE = "-1"  # a pushback that says: don't retry

CLASSES = {
    Code.INVALID_ARGUMENT: InvalidArgument,
    Code.OUT_OF_RANGE: InvalidArgument,
    Code.NOT_FOUND: NotFound,
    Code.FAILED_PRECONDITION: FailedPrecondition,
    Code.RESOURCE_EXHAUSTED: Overloaded,
    Code.UNAVAILABLE: Unavailable,
    Code.DEADLINE_EXCEEDED: DeadlineExceeded,
    Code.DATA_LOSS: DataLoss,
    Code.ABORTED: Aborted,
    Code.UNAUTHENTICATED: Unauthenticated,
    Code.PERMISSION_DENIED: PermissionDenied,
    Code.UNIMPLEMENTED: Unimplemented,
    Code.INTERNAL: Internal,
    Code.UNKNOWN: Internal,
    Code.CANCELLED: Unavailable,
    Code.ALREADY_EXISTS: Internal,
}


def failure(score, address, **how):
    with pytest.raises(PlauditError) as caught:
        score(address, **how)
    return caught.value


@pytest.mark.parametrize(("code", "kind"), CLASSES.items(), ids=lambda value: getattr(value, "name", ""))
def test_each_code_has_its_class(serve_reward, score, code, kind):
    server = serve_reward(refuse(code, "what the service says", pushback_ms=ONCE))
    error = failure(score, server.address)
    assert type(error) is kind
    assert str(error).startswith(f"reward at {server.address}: Score: what the service says")
    assert "\n" not in str(error)


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.INVALID_ARGUMENT])
def test_codes_without_details_are_enough(serve_reward, score, code):
    error = failure(score, serve_reward(refuse_plainly(code, "plain words")).address)
    assert type(error) is CLASSES[code], "a service that refuses is not one that isn't there"
    assert "plain words" in str(error)


def test_field_violations(serve_reward, score):
    fields = [("items[3].pair.prompt", "is empty; give some text"), ("items[4]", "has no input")]
    violations = [rpc.BadRequest.FieldViolation(field=f, description=d) for f, d in fields]
    server = serve_reward(refuse(Code.INVALID_ARGUMENT, "bad", rpc.BadRequest(field_violations=violations)))
    error = failure(score, server.address)
    assert error.violations == tuple(Violation(*field) for field in fields)
    assert "items[3].pair.prompt: is empty; give some text; items[4]: has no input" in str(error)
    assert len(server.heard) == 1


def test_retry_after(serve_reward, score):
    retry = rpc.RetryInfo(retry_delay=Duration(seconds=60, nanos=500_000_000))
    server = serve_reward(refuse(Code.RESOURCE_EXHAUSTED, "the queue is full", retry, pushback_ms=ONCE))
    error = failure(score, server.address, timeout=30)  # too little to come back
    assert isinstance(error, Overloaded)
    assert error.retry_after == 60.5
    assert len(server.heard) == 1


def test_precondition(serve_reward, score):
    violation = rpc.PreconditionFailure.Violation(
        type="STEP", subject="step 7", description="step 4 is loaded"
    )
    server = serve_reward(
        refuse(Code.FAILED_PRECONDITION, "step 4 is loaded", rpc.PreconditionFailure(violations=[violation]))
    )
    assert failure(score, server.address).preconditions == (
        Precondition("STEP", "step 7", "step 4 is loaded"),
    )


def test_resource(serve_reward, score):
    info = rpc.ResourceInfo(resource_type="push", resource_name="p-1")
    server = serve_reward(refuse(Code.NOT_FOUND, "no push 'p-1' here", info))
    assert failure(score, server.address).resource == Resource("push", "p-1")


def test_request_id_is_the_one_that_was_sent(serve_reward, score):
    server = serve_reward(refuse(Code.INTERNAL, "internal error"))
    error = failure(score, server.address)
    assert error.request_id == server.heard[0].metadata["x-request-id"]
    assert error.request_id in str(error)


def test_request_id_of_the_service_wins(serve_reward, score):
    server = serve_reward(refuse(Code.INTERNAL, "internal error", rpc.RequestInfo(request_id="theirs")))
    assert failure(score, server.address).request_id == "theirs"


def test_illegible_details_are_no_other_error(serve_reward, score):
    server = serve_reward(refuse(Code.INVALID_ARGUMENT, "bad", status=b"\xff\xff\xff"))
    error = failure(score, server.address)
    assert type(error) is InvalidArgument
    assert error.violations == ()


def test_details_of_unknown_kinds_are_passed_over(serve_reward, score):
    known = rpc.RetryInfo(retry_delay=Duration(seconds=2))
    server = serve_reward(refuse(Code.UNAVAILABLE, "loading", rpc.Help(), known, pushback_ms=ONCE))
    assert failure(score, server.address).retry_after == 2.0


def test_nobody_there(score, unused_address):
    error = failure(score, unused_address)
    assert type(error) is Unreachable
    assert str(error).startswith(f"reward at {unused_address}: Score: not reachable for ")
    assert "Connection refused" in str(error)
    assert "is this its address?" in str(error)


def test_a_name_that_does_not_resolve(score):
    error = failure(score, "no-such-host.invalid:50052", timeout=5)
    assert type(error) is Unreachable


def test_nobody_there_while_waiting_for_one(score, unused_address):
    error = failure(score, unused_address, client={"wait_for_ready": True}, timeout=0.3)
    assert type(error) is Unreachable, "it is not slow: it isn't there"


def test_slow_service(serve_reward, score):
    server = serve_reward(lambda request, context: server.hang(request, context))
    error = failure(score, server.address, timeout=1.0)
    assert type(error) is DeadlineExceeded
    assert "no answer within 1.0 s" in str(error)
    assert "timeout=" in str(error)


def test_a_service_that_knows_it_will_be_late_keeps_its_words(serve_reward, score):
    server = serve_reward(refuse(Code.DEADLINE_EXCEEDED, "the queue is 9 s long"))
    assert "the queue is 9 s long" in str(failure(score, server.address))


def test_service_that_dies_in_mid_call(serve_reward, score):
    def die(request, context):
        server.server.stop(0)
        server.over.wait(30)

    server = serve_reward(die)
    error = failure(score, server.address, timeout=20)
    assert isinstance(error, Unavailable)


def test_address_of_another_service(serve, score):
    other = serve(POLICY, {"GetPolicy": [policy_pb2.GetPolicyResponse()]})
    error = failure(score, other.address)
    assert type(error) is Unimplemented
    assert "another service" in str(error)


def test_response_larger_than_allowed_is_no_full_queue(serve_reward, call, monkeypatch):
    monkeypatch.setattr("plaudit.clients.channel.MAX_MESSAGE_BYTES", 64)
    server = serve_reward(reward_pb2.ScoreResponse(results=[SCORED.results[0]] * 100))
    with pytest.raises(InvalidArgument, match="ask for less in one call"):
        call("reward", server.address, "score", [("a", "b")])


def test_errors_survive_pickling():
    where = Where("reward", "host:1", "Score", "id-1")
    error = InvalidArgument("no", where, Details(violations=(Violation("a", "b"),), retry_after=2.0))
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.violations) == (InvalidArgument, str(error), error.violations)
    assert (copy.retry_after, copy.request_id) == (2.0, "id-1")


def test_the_grpc_error_is_the_cause(score, unused_address):
    assert isinstance(failure(score, unused_address).__cause__, grpc.RpcError)


def test_item_failures_are_of_the_same_tree():
    item = ItemFailure("INVALID_ARGUMENT", "items[0]: empty", (Violation("items[0]", "empty"),))
    error = PlauditError.of_item(item)
    assert type(error) is InvalidArgument
    assert error.violations == item.violations
    assert str(error) == "items[0]: empty"
    assert type(PlauditError.of_item(ItemFailure("WHATEVER", "?"))) is Internal


def test_the_tree_in_the_docstring_is_the_tree():
    from plaudit.clients import errors

    kinds = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, PlauditError)
    }
    drawn = {word for line in errors.__doc__.splitlines() for word in line.split()[:3] if word in kinds}
    assert drawn == kinds
