"""Every refusal has its status code, its details and, where it helps, when to come back."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from lm.errors import InputError, ModelLoadError
from services import errors
from services.rpc import status
from services.rpc.convert import item_error

CODES = [
    (errors.InvalidInput.at("f", "wrong"), grpc.StatusCode.INVALID_ARGUMENT),
    (InputError("f", "wrong"), grpc.StatusCode.INVALID_ARGUMENT),
    (errors.UnknownName("push", "p1"), grpc.StatusCode.NOT_FOUND),
    (errors.PreconditionFailed("STEP", "step", "not loaded"), grpc.StatusCode.FAILED_PRECONDITION),
    (errors.Overloaded("full"), grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.NotServing("loading"), grpc.StatusCode.UNAVAILABLE),
    (errors.Damaged("digest"), grpc.StatusCode.DATA_LOSS),
    (errors.Conflict("taken"), grpc.StatusCode.ABORTED),
    (errors.TooLate("late"), grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.Unauthenticated("token"), grpc.StatusCode.UNAUTHENTICATED),
    (errors.PermissionDenied("scope"), grpc.StatusCode.PERMISSION_DENIED),
]


def details(refusal):
    metadata = dict(refusal.trailing_metadata())
    return status_pb2.Status.FromString(metadata["grpc-status-details-bin"]), metadata


def unpack(message, kind):
    found = kind()
    assert message.Unpack(found)
    return found


@pytest.mark.parametrize(("error", "code"), CODES)
def test_code_and_message(error, code):
    refusal = status.refusal(error)
    assert (refusal.code, refusal.message) == (code, str(error))
    carried, _ = details(refusal)
    assert (carried.code, carried.message) == (code.value[0], str(error))


def test_every_service_error_is_mapped():
    assert {type(error) for error, _ in CODES} >= set(errors.ServiceError.__subclasses__())


def test_a_subclass_has_its_parents_code():
    class Narrower(errors.Conflict):
        pass

    assert status.refusal(Narrower("x")).code is grpc.StatusCode.ABORTED


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), ModelLoadError("x")])
def test_what_was_not_raised_on_purpose_is_not_explained(error):
    assert status.refusal(error) is None


def test_field_violations_are_carried():
    violations = [errors.Violation("a[0].b", "is 3; use 2"), errors.Violation("c", "is empty")]
    carried, _ = details(status.refusal(errors.InvalidInput(violations)))
    found = unpack(carried.details[0], error_details_pb2.BadRequest).field_violations
    pairs = [(field.field, field.description) for field in found]
    assert pairs == [("a[0].b", "is 3; use 2"), ("c", "is empty")]


def test_pushback_and_retry_info():
    carried, metadata = details(status.refusal(errors.Overloaded("full", retry_after=1.25)))
    assert metadata["grpc-retry-pushback-ms"] == "1250"
    delay = unpack(carried.details[0], error_details_pb2.RetryInfo).retry_delay
    assert (delay.seconds, delay.nanos) == (1, 250_000_000)


def test_pushback_is_never_zero():
    _, metadata = details(status.refusal(errors.NotServing("loading", retry_after=0.0)))
    assert metadata["grpc-retry-pushback-ms"] == "1"


def test_precondition_and_resource():
    carried, _ = details(status.refusal(errors.PreconditionFailed("STEP", "step_exactly", "is 3, not 4")))
    violation = unpack(carried.details[0], error_details_pb2.PreconditionFailure).violations[0]
    assert (violation.type, violation.subject) == ("STEP", "step_exactly")
    assert violation.description == "is 3, not 4"
    carried, _ = details(status.refusal(errors.UnknownName("push", "p1")))
    info = unpack(carried.details[0], error_details_pb2.ResourceInfo)
    assert (info.resource_type, info.resource_name) == ("push", "p1")


def test_a_status_fits_in_headers_however_much_is_wrong():
    violations = [errors.Violation(f"items[{i}]." + "a" * 500, "é" * 5000) for i in range(1000)]
    refusal = status.refusal(errors.InvalidInput(violations))
    blob = dict(refusal.trailing_metadata())["grpc-status-details-bin"]
    percent_encoded = sum(3 if byte > 126 else 1 for byte in refusal.message.encode())
    assert len(blob) * 4 / 3 + percent_encoded < 8000
    carried, _ = details(refusal)
    assert len(unpack(carried.details[0], error_details_pb2.BadRequest).field_violations) == 8


def test_internal_says_an_id_and_nothing_else():
    refusal = status.internal("abc")
    assert refusal.code is grpc.StatusCode.INTERNAL
    assert "abc" in refusal.message
    assert status.new_error_id() != status.new_error_id()


def test_item_error_of_a_refusal_and_of_a_fault():
    error = item_error(InputError("items[2].pair.response", "is empty"))
    assert (error.code, error.message) == (3, "items[2].pair.response: is empty")
    assert [(field.field, field.description) for field in error.field_violations] == [
        ("items[2].pair.response", "is empty")
    ]
    assert item_error(RuntimeError("nan")).code == grpc.StatusCode.INTERNAL.value[0]
