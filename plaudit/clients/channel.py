"""How every client reaches its service.

One policy for all calls: a deadline on each, a bearer token if there is one, a request id, retries only
where a second try can do no harm (tries.py), turns among several addresses, and an end to how many calls
are under way at once.
"""

import asyncio
import json
import math
import os
import re
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

from google.protobuf.message import Message

from plaudit.clients.addresses import is_loopback, target_of
from plaudit.clients.budget import Budget
from plaudit.clients.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, PlauditError, Where
from plaudit.clients.replicas import Replicas
from plaudit.clients.tls import File, Line, tls_files
from plaudit.clients.token import open_token
from plaudit.clients.tries import Attempt, Tries

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)
Addresses: TypeAlias = str | Sequence[str]

DEFAULT_TIMEOUT = 60.0
"""Seconds a call may take unless the caller says otherwise."""
MAX_IN_FLIGHT = 256
"""Calls that a client has under way at once unless the caller says otherwise."""
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
MAX_REQUEST_BYTES = 16 * 1024 * 1024
"""What our services read of one message of a stream, which isn't asked for their limits."""

# What may be sent twice. Generate belongs here because PolicyClient gives every prompt a seed. Of a push,
# a second BeginPush finds the one that the first opened, and a second CommitPush or AbortPush the outcome
# of the first; PushChunks has a way of its own to go on (upload.py).
IDEMPOTENT = {
    "plaudit.v1.PolicyService": ("Generate", "GetPolicy"),
    "plaudit.v1.ReferenceService": ("ComputeLogprobs", "GetReference"),
    "plaudit.v1.RewardService": ("Score", "Rank", "Compare", "GetModel", "ListModels"),
    "plaudit.v1.TrainerService": ("GetRun", "StopRun"),
    "plaudit.v1.WeightsService": ("BeginPush", "GetPush", "CommitPush", "AbortPush"),
}

# Of the replicas behind one name, those that failed nearly all their calls within an interval are left out
# for that long, then longer (gRFC A50; replicas.py does it for a list of addresses). Whatever isn't OK counts
# as a failure, also what the caller did wrong: hence nearly all of several calls, at most half of the
# replicas, and none where the others hadn't as many calls.
OUTLIERS = {
    "interval": "10s",
    "baseEjectionTime": "10s",
    "maxEjectionTime": "30s",
    "maxEjectionPercent": 50,
    "failurePercentageEjection": {
        "threshold": 90,
        "enforcementPercentage": 100,
        "minimumHosts": 2,
        "requestVolume": 10,
    },
    "childPolicy": [{"round_robin": {}}],
}

# gRPC adds jitter to the backoff, and obeys grpc-retry-pushback-ms instead where a service sends it.
# Throttling is the retry budget: when half the tokens are gone (one per failure, half a one back per
# success) nothing is retried, so an outage isn't made worse. A full queue is no outage and has nothing
# to do with it: RESOURCE_EXHAUSTED is left to tries.py.
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"outlier_detection_experimental": OUTLIERS}],
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.5},
    "methodConfig": [
        {
            "name": [{"service": s, "method": m} for s, methods in IDEMPOTENT.items() for m in methods],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}


@dataclass(frozen=True)
class Method(Generic[RequestT, ResponseT]):
    """An RPC by its full service name, such as plaudit.v1.RewardService, and its own."""

    service: str
    name: str
    response: type[ResponseT]

    @property
    def path(self) -> str:
        """As HTTP/2 sees it."""
        return f"/{self.service}/{self.name}"

    @property
    def idempotent(self) -> bool:
        """Whether it may be sent twice."""
        return self.name in IDEMPOTENT.get(self.service, ())


class Connection:
    """What sync and async clients share. Does no I/O of its own, and is safe to use from many threads."""

    _service: str
    """The service in people's words, for messages."""
    _one_address: ClassVar[bool] = False
    """Whether calls build on each other and so must reach the same server."""
    _may_hedge: ClassVar[bool] = False
    """Whether a second call costs no more than its work, and comes to the same."""
    _token_needs: ClassVar[str] = "tls_ca (PLAUDIT_TLS_CA), or insecure=True (PLAUDIT_INSECURE=1)"
    """By which a token may go to another machine."""
    _closed: threading.Event | asyncio.Event

    def __init__(
        self,
        address: Addresses,
        *,
        token: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        wait_for_ready: bool = False,
        caller: str | None = None,
        max_in_flight: int = MAX_IN_FLIGHT,
        tls_ca: File | None = None,
        tls_cert: File | None = None,
        tls_key: File | None = None,
        tls_name: str | None = None,
        insecure: bool | None = None,
        token_file: File | None = None,
        hedge_after: float | None = None,
    ) -> None:
        """Opens no connection yet; the first call does.

        `address` is host:port, or several of replicas: calls take them in turn, and where one is
        unavailable go on to the next, and one that fails several times in a row is left out for a while
        (replicas.py). A host name that stands for many replicas is balanced over all.
        `token` is PLAUDIT_TOKEN of the environment unless given; or `token_file`, PLAUDIT_TOKEN_FILE, holds
        it on its first line and is read again when it changes. `timeout` is the default for each
        call, in seconds. `wait_for_ready` makes calls wait, within their timeout, for a service that
        isn't up yet. `caller` is the name under which a busy service shares itself among its callers;
        without one, each connection is a caller. Of the calls that are made at once, from threads or
        tasks, `max_in_flight` are under way and the others wait for their turn, within their timeout.

        `tls_ca` turns TLS on: PEM of the CAs of which the server must have a certificate. `tls_cert` and
        `tls_key` are the client's own, where the server asks for one. They are PLAUDIT_TLS_CA,
        PLAUDIT_TLS_CERT and PLAUDIT_TLS_KEY of the environment unless given, and read again when they
        change. Each may be a directory with ca.crt, tls.crt or tls.key, of which `tls_cert` alone brings all
        three. `tls_name` is the name in the server's certificate where that isn't the host of `address`.
        Without TLS a token goes to this machine only, unless `insecure` (or PLAUDIT_INSECURE=1) says that
        the network is trusted.

        `hedge_after` is for reward and reference: a call that has no answer after so many seconds is made
        a second time, of another address or over another connection, the first answer counts, and the other
        call is cancelled. At most one call in ten is, so that a busy service isn't asked for twice as much.

        Raises InvalidArgument for an address, timeout, caller, max_in_flight or hedge_after that can't be,
        and for a token that would go over the network for all to read.
        """
        self.addresses = (address,) if isinstance(address, str) else tuple(address)
        if not self.addresses:
            raise InvalidArgument.at("address", "none given; write host:port")
        if self._one_address and len(self.addresses) > 1:
            raise InvalidArgument.at(
                "address", f"{len(self.addresses)} given; make a client for each replica"
            )
        self.targets = [target_of(address) for address in self.addresses]
        self._token = open_token(token, token_file)
        self._tls = tls_files(tls_ca, tls_cert, tls_key)
        self._tls_name = tls_name
        self._insecure = os.environ.get("PLAUDIT_INSECURE") in ("1", "true") if insecure is None else insecure
        self._check_token()
        self._timeout = _checked_timeout(timeout)
        self._wait_for_ready = wait_for_ready
        self._caller = _checked_caller(caller)
        self.max_in_flight = _checked_in_flight(max_in_flight)
        self._hedge_after = self._checked_hedge(hedge_after)
        self._hedges = Budget()
        self._replicas = Replicas(len(self.addresses))
        self._prepare()

    def _prepare(self) -> None:
        """Makes what one kind of client needs before its first call; each does."""
        raise NotImplementedError

    def _check_token(self) -> None:
        far = next((target for target in self.targets if not is_loopback(target)), None)
        if self._shows_tokens() and self._tls is None and not self._insecure and far is not None:
            where = far.removeprefix("dns:///")
            raise InvalidArgument.at(
                "token",
                f"would go to {where} for all on the way to read; give {self._token_needs} if the network is "
                "trusted",
            )

    def _shows_tokens(self) -> bool:
        return bool(self._token.now())

    def _checked_hedge(self, seconds: float | None) -> float | None:
        if seconds is not None and not self._may_hedge:
            raise InvalidArgument.at("hedge_after", f"is for reward and reference, not for {self._service}")
        return None if seconds is None else _checked_timeout(seconds, "hedge_after")

    def _lines(self) -> list[Line]:
        """Target and options of each channel; a second one to the only address where calls are hedged."""
        every = [(target, channel_options(target, self._tls_name)) for target in self.targets]
        return every * 2 if self._hedge_after is not None and len(every) == 1 else every

    def tries(self, method: Method[Any, Any], timeout: float | None) -> Tries:
        """The tries of one call that begins now. Raises FailedPrecondition once the client is closed."""
        if self._closed.is_set():
            raise FailedPrecondition(f"the {self._service} client is closed; make another one")
        request_id = uuid.uuid4().hex
        metadata = (*_metadata(self._token.now(), self._caller), ("x-request-id", request_id))
        attempts = [
            Attempt(
                channel_index=index,
                where=Where(
                    self._service, self.addresses[index], method.name, request_id, self._tls is not None
                ),
                metadata=metadata,
                wait_for_ready=self._wait_for_ready,
            )
            for index in self._replicas.in_turn()
        ]
        return Tries(attempts, self.seconds(timeout), method.idempotent, self._replicas)

    def seconds(self, timeout: float | None) -> float:
        """The client's timeout unless another is given. Raises InvalidArgument for one that can't be."""
        return self._timeout if timeout is None else _checked_timeout(timeout)

    def _no_turn(self, tries: Tries) -> PlauditError:
        reason = (
            f"no turn within {tries.timeout:.1f} s: max_in_flight={self.max_in_flight} calls were under way"
        )
        return DeadlineExceeded(reason, tries.first.where)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.addresses)})"


def channel_options(target: str, tls_name: str | None = None) -> list[tuple[str, Any]]:
    """What every channel is opened with; `target` as in Connection.targets."""
    return [
        *([("grpc.ssl_target_name_override", tls_name)] if tls_name else []),
        ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
        ("grpc.service_config_disable_resolution", 1),  # ours holds; and no TXT look-up per name
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 30_000),  # servers allow 10 s; finds dead peers during long calls
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),  # what gRPC 1.85 goes by; its own is 60 s
        ("grpc.http2.max_pings_without_data", 0),  # a call that computes for minutes sends no data
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.dns_min_time_between_resolutions_ms", 2_000),  # not 30 s: pods come and go
        ("grpc.max_reconnect_backoff_ms", 5_000),  # a service that comes up is seen within 5 s, not 2 min
        # A connection of its own, not that of an older client of this process, which may have found nobody
        # at the address and now wait for seconds before it looks again.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", int(not is_loopback(target))),
    ]


def check_size(request: Message) -> None:
    """Raises InvalidArgument for a message no server would take: gRPC itself would say it as a full queue."""
    if (size := request.ByteSize()) > MAX_MESSAGE_BYTES:
        raise InvalidArgument.at("request", f"{size:,} bytes; at most {MAX_MESSAGE_BYTES:,} fit in one call")


def _checked_timeout(timeout: float, name: str = "timeout") -> float:
    if not 0 < timeout < math.inf:
        raise InvalidArgument.at(name, f"{timeout} is not a time above 0 s; every call has an end")
    return timeout


def _checked_caller(caller: str | None) -> str:
    if caller is not None and not re.fullmatch(r"[!-~]([ -~]{0,126}[!-~])?", caller):
        raise InvalidArgument.at("caller", f"{caller!r} is not 1 to 128 printable ASCII characters")
    return caller or ""


def _checked_in_flight(count: int) -> int:
    if count < 1:
        raise InvalidArgument.at("max_in_flight", f"{count}; at least 1, or no call is ever made")
    return count


def _metadata(token: str, caller: str) -> Iterator[tuple[str, str]]:
    if token:
        yield "authorization", f"Bearer {token}"
    if caller:
        yield "x-plaudit-caller", caller
