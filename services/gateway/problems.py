"""Errors as callers see them: RFC 9457 problems that name fields as the JSON body has them.

Each has the gRPC code's name as `code`, the request's id, and violations as the reward service gives them.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from plaudit import clients
from plaudit.clients import ItemFailure, PlauditError, Violation
from plaudit.clients.errors import reason_of
from services.gateway.paths import Paths
from services.rpc import logs

MEDIA_TYPE = "application/problem+json"

log = logging.getLogger("services.gateway.problems")


class FieldViolation(BaseModel):
    """What is wrong with one field, and how to mend it."""

    field: str = Field(examples=["items[3].response"])
    description: str


class Problem(BaseModel):
    """Why a request has no answer (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str = Field(description="Name of the gRPC status code.", examples=["INVALID_ARGUMENT"])
    request_id: str = Field(description="Names the request in the logs of the gateway and the service.")
    violations: list[FieldViolation] = []
    retry_after_seconds: float | None = None


class ProblemError(Exception):
    """Ends a request with a problem."""

    def __init__(
        self,
        status: HTTPStatus,
        code: str,
        detail: str,
        violations: Sequence[Violation] = (),
        retry_after: float | None = None,
        *,
        is_last: bool = False,
    ) -> None:
        """`is_last` ends the connection with it."""
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.violations = tuple(violations)
        self.retry_after = retry_after
        self.is_last = is_last

    @classmethod
    def at(cls, field: str, description: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> "ProblemError":
        """The common case of one wrong field."""
        violation = Violation(field, description)
        return cls(status, "INVALID_ARGUMENT", reason_of([violation], ""), [violation])


_STATUS: dict[type[PlauditError], tuple[HTTPStatus, str]] = {
    clients.InvalidArgument: (HTTPStatus.BAD_REQUEST, "INVALID_ARGUMENT"),
    clients.NotFound: (HTTPStatus.NOT_FOUND, "NOT_FOUND"),
    clients.FailedPrecondition: (HTTPStatus.CONFLICT, "FAILED_PRECONDITION"),
    clients.Aborted: (HTTPStatus.CONFLICT, "ABORTED"),
    clients.Overloaded: (HTTPStatus.TOO_MANY_REQUESTS, "RESOURCE_EXHAUSTED"),
    clients.Unavailable: (HTTPStatus.SERVICE_UNAVAILABLE, "UNAVAILABLE"),
    clients.DeadlineExceeded: (HTTPStatus.GATEWAY_TIMEOUT, "DEADLINE_EXCEEDED"),
    clients.Unauthenticated: (HTTPStatus.UNAUTHORIZED, "UNAUTHENTICATED"),
    clients.PermissionDenied: (HTTPStatus.FORBIDDEN, "PERMISSION_DENIED"),
    clients.Unimplemented: (HTTPStatus.NOT_IMPLEMENTED, "UNIMPLEMENTED"),
    clients.DataLoss: (HTTPStatus.INTERNAL_SERVER_ERROR, "DATA_LOSS"),
    clients.Internal: (HTTPStatus.INTERNAL_SERVER_ERROR, "INTERNAL"),
}
_RETRY_AFTER_S = 1.0
"""Said where a service that is down or busy doesn't say it."""
_ADVICE: dict[type[PlauditError], str] = {
    clients.Unauthenticated: "send the header Authorization: Bearer TOKEN",
    clients.DeadlineExceeded: "allow more with the header x-timeout-seconds, or ask for less in one request",
}


def of_error(error: PlauditError, paths: Paths) -> ProblemError:
    """The problem of a call that failed; its fields renamed."""
    kind = next(kind for kind in type(error).__mro__ if kind in _STATUS)
    status, code = _STATUS[kind]
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("%s", error)
    violations = paths.violations(error.violations)
    # Whoever asks over HTTP isn't told the addresses behind the gateway; the log is.
    unreachable = isinstance(error, clients.Unreachable)
    detail = "the reward service can't be reached" if unreachable else reason_of(violations, error.reason)
    if kind in _ADVICE:
        detail += f"; {_ADVICE[kind]}"
    wait = kind in (clients.Unavailable, clients.Overloaded)
    return ProblemError(
        status, code, detail, violations, (error.retry_after or _RETRY_AFTER_S) if wait else None
    )


def of_item(failure: ItemFailure, paths: Paths) -> ProblemError:
    """The problem of a request whose shape has no room for the failure of one item."""
    return of_error(PlauditError.of_item(failure), paths)


def item_message(failure: ItemFailure, paths: Paths) -> str:
    """Why an item has no score, in words, its fields renamed."""
    return reason_of(paths.violations(failure.violations), failure.message)


def response(error: ProblemError) -> JSONResponse:
    """As it is sent."""
    problem = Problem(
        title=error.status.phrase,
        status=error.status,
        detail=error.detail,
        code=error.code,
        request_id=logs.request_id.get(),
        violations=[FieldViolation(field=v.field, description=v.description) for v in error.violations],
        retry_after_seconds=error.retry_after,
    )
    headers: dict[str, str] = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if error.status is HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    if error.is_last:
        headers["connection"] = "close"
    return JSONResponse(
        problem.model_dump(exclude_none=True), error.status, headers=headers, media_type=MEDIA_TYPE
    )


def install(app: FastAPI) -> None:
    """Makes every error of `app` a problem."""
    app.add_exception_handler(ProblemError, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _internal)


async def _problem(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ProblemError)
    return response(error)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """What pydantic found: 400 for a body that is no JSON, 415 for one that isn't said to be, else 422."""
    assert isinstance(error, RequestValidationError)
    kind = request.headers.get("content-type", "none")
    if request.method == "POST" and "json" not in kind:
        field, status = "content-type", HTTPStatus.UNSUPPORTED_MEDIA_TYPE
        return response(ProblemError.at(field, f"is {kind}; send application/json", status))
    found = [violation(each, "body") for each in error.errors()]
    no_json = any(each["type"] == "json_invalid" for each in error.errors())
    status = HTTPStatus.BAD_REQUEST if no_json else HTTPStatus.UNPROCESSABLE_ENTITY
    return response(ProblemError(status, "INVALID_ARGUMENT", reason_of(found, "invalid"), found))


async def _http(_: Request, error: Exception) -> JSONResponse:
    """Paths and methods that don't exist, and bodies that FastAPI can't decode."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    if status is HTTPStatus.BAD_REQUEST:
        return response(ProblemError.at("body", "isn't JSON in UTF-8"))
    code = "NOT_FOUND" if status is HTTPStatus.NOT_FOUND else "INVALID_ARGUMENT"
    answer = response(ProblemError(status, code, f"{error.detail}; /docs lists what there is"))
    answer.headers.update(error.headers or {})
    return answer


async def _internal(_: Request, error: Exception) -> JSONResponse:
    """A fault of ours: the stack goes to the log, under the request's id."""
    return response(
        ProblemError(
            HTTPStatus.INTERNAL_SERVER_ERROR, "INTERNAL", "the gateway failed; its log has the request's id"
        )
    )


def violation(found: Mapping[str, object], whole: str) -> Violation:
    """Of an error as pydantic tells it; its place begins with `whole`, which is left out unless it is all."""
    place, context = found["loc"], found.get("ctx")
    assert isinstance(place, tuple)
    if found["type"] == "json_invalid":
        return Violation(whole, f"isn't JSON: {context['error'] if isinstance(context, dict) else ''}")
    named = context.get("field") if isinstance(context, dict) else None
    return Violation(_path((*place[1:], named) if named else place[1:]) or whole, str(found["msg"]))


def _path(place: Sequence[int | str]) -> str:
    """("items", 3, "<pair>", "prompt") as "items[3].prompt": a tag of a union is no place in the body."""
    path = ""
    for part in place:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not part.startswith("<"):
            path += f".{part}" if path else part
    return path
