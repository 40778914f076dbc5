"""How every client reaches its service; the only place that opens channels.

One policy for all calls: a deadline on each, a bearer token if there is one, a request id, retries only
where a second try can do no harm, and turns among several addresses.
"""

import ipaddress
import itertools
import json
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from plaudit.clients.errors import InvalidArgument, Overloaded, PlauditError, Unavailable, Where, from_rpc

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)
Addresses: TypeAlias = str | Sequence[str]

DEFAULT_TIMEOUT = 60.0
"""Seconds a call may take unless the caller says otherwise."""
MAX_MESSAGE_BYTES = 64 * 1024 * 1024

# What may be sent twice. Generate belongs here because PolicyClient gives every prompt a seed;
# pushes never do: a second CommitPush would meet a state that the first one made.
IDEMPOTENT = {
    "plaudit.v1.PolicyService": ("Generate", "GetPolicy"),
    "plaudit.v1.ReferenceService": ("ComputeLogprobs", "GetReference"),
    "plaudit.v1.RewardService": ("Score", "GetModel"),
    "plaudit.v1.TrainerService": ("GetRun",),
}

# gRPC adds jitter to the backoff, and obeys grpc-retry-pushback-ms instead where a service sends it.
# Throttling is the retry budget: when half the tokens are gone (one per failure, half a one back per
# success) nothing is retried, so an outage isn't made worse.
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.5},
    "methodConfig": [
        {
            "name": [{"service": s, "method": m} for s, methods in IDEMPOTENT.items() for m in methods],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
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


@dataclass(frozen=True)
class Attempt:
    """One call to one address. Times are monotonic seconds."""

    channel_index: int
    where: Where
    started: float
    deadline: float
    metadata: tuple[tuple[str, str], ...]
    wait_for_ready: bool
    is_last: bool

    def arguments(self) -> dict[str, Any]:
        """What gRPC wants to know beside the request."""
        timeout = max(0.0, self.deadline - time.monotonic())
        return {"timeout": timeout, "metadata": self.metadata, "wait_for_ready": self.wait_for_ready}

    def failure(self, error: grpc.RpcError, is_connected: Callable[[], bool]) -> PlauditError:
        """The error to raise, unless the next attempt may still succeed elsewhere."""
        return from_rpc(error, self.where, is_connected, time.monotonic() - self.started)

    def goes_on(self, failure: PlauditError) -> bool:
        """Whether another address may do what this one couldn't."""
        return not self.is_last and isinstance(failure, Unavailable | Overloaded)


class Connection:
    """What sync and async clients share. Does no I/O of its own, and is safe to use from many threads."""

    _service: str
    """The service in people's words, for messages."""
    _one_address: ClassVar[bool] = False
    """Whether calls build on each other and so must reach the same server."""

    def __init__(
        self,
        address: Addresses,
        *,
        token: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        wait_for_ready: bool = False,
    ) -> None:
        """Opens no connection yet; the first call does.

        `address` is host:port, or several of replicas: calls take them in turn, and where one is
        unavailable go on to the next. A host name that stands for many replicas is balanced over all.
        `token` is PLAUDIT_TOKEN of the environment unless given. `timeout` is the default for each
        call, in seconds. `wait_for_ready` makes calls wait, within their timeout, for a service that
        isn't up yet.

        Raises InvalidArgument for an address or timeout that can't be.
        """
        self.addresses = (address,) if isinstance(address, str) else tuple(address)
        if not self.addresses:
            raise InvalidArgument.at("address", "none given; write host:port")
        if self._one_address and len(self.addresses) > 1:
            raise InvalidArgument.at(
                "address", f"{len(self.addresses)} given; make a client for each replica"
            )
        self.targets = [_target(address) for address in self.addresses]
        self._token = (os.environ.get("PLAUDIT_TOKEN", "") if token is None else token).strip()
        self._timeout = _checked_timeout(timeout)
        self._wait_for_ready = wait_for_ready
        self._turn = itertools.count()

    def attempts(self, method: Method[Any, Any], timeout: float | None) -> Iterator[Attempt]:
        """The calls to make in turn until one answers; just one where a second could do harm."""
        started = time.monotonic()
        deadline = started + (self._timeout if timeout is None else _checked_timeout(timeout))
        request_id = uuid.uuid4().hex
        metadata = [("x-request-id", request_id)]
        if self._token:
            metadata.append(("authorization", f"Bearer {self._token}"))
        first, count = next(self._turn), len(self.addresses)
        tries = count if method.idempotent else 1
        for number in range(tries):
            index = (first + number) % count
            where = Where(self._service, self.addresses[index], method.name, request_id)
            last = number == tries - 1
            yield Attempt(index, where, started, deadline, tuple(metadata), self._wait_for_ready, last)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.addresses)})"


def channel_options(target: str) -> list[tuple[str, Any]]:
    """What every channel is opened with; `target` as in Connection.targets."""
    return [
        ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
        ("grpc.service_config_disable_resolution", 1),  # ours holds; and no TXT look-up per name
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 30_000),  # servers allow 10 s; finds dead peers during long calls
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),  # a call that computes for minutes sends no data
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),  # a service that comes up is seen within 5 s, not 2 min
        ("grpc.enable_http_proxy", int(not _is_loopback(target))),
    ]


def check_size(request: Message) -> None:
    """Raises InvalidArgument for a message no server would take: gRPC itself would say it as a full queue."""
    if (size := request.ByteSize()) > MAX_MESSAGE_BYTES:
        raise InvalidArgument.at("request", f"{size:,} bytes; at most {MAX_MESSAGE_BYTES:,} fit in one call")


def _host_and_port(address: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})", address)
    if not match or not 0 < int(match["port"]) < 65536:
        raise InvalidArgument.at("address", f"{address!r} is not host:port, such as 127.0.0.1:50052")
    return match["host"], int(match["port"])


def _target(address: str) -> str:
    """The dns resolver gives all addresses of a name, and asks again when one is lost."""
    host, port = _host_and_port(address)
    return f"dns:///{host}:{port}"


def _is_loopback(target: str) -> bool:
    host, _ = _host_and_port(target.removeprefix("dns:///"))
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _checked_timeout(timeout: float) -> float:
    if not 0 < timeout < math.inf:
        raise InvalidArgument.at("timeout", f"{timeout} is not a time above 0 s; every call has an end")
    return timeout
