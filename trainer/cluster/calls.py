"""One namespace of a cluster: plain dicts, typed errors, and second tries where they can do no harm.

What is sent twice may be: reads, server-side apply, and the deletion of one object by its uid.
"""

import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from trainer.cluster.api import PLURALS, REQUEST_S, KnownKinds, connect
from trainer.cluster.errors import ApiUnreachable, NotThere
from trainer.cluster.refusals import FINAL, asked_pause, reason, refusal

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient
    from kubernetes.dynamic.resource import Resource
    from urllib3 import HTTPResponse

Object: TypeAlias = dict[str, Any]
"""Of the cluster, as its JSON has it."""
AnswerT = TypeVar("AnswerT")

MANAGER = "plaudit"
"""Our field manager: that of `kubectl apply --server-side --field-manager=plaudit`, too."""
VERSIONS = {kind: version for version, kind in PLURALS}
PASSING = frozenset({429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed."""
PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Before the next try, unless the server asks for another."""
LONGEST_PAUSE_S = 10.0
PATIENCE_S = 30.0
"""No request is sent again after so long."""
WATCH_S = 5
"""A watch is begun anew after so long, with a list."""
LEAST_S = 1.0
"""Lists of what is followed are at least so far apart."""
LOG_S = 30
"""A log in which nothing is said for so long ends, for whoever waits to look around."""


class Clock(Protocol):
    """Time that only goes on; the module `time` is one."""

    def monotonic(self) -> float:
        """Seconds."""
        ...

    def sleep(self, seconds: float, /) -> None:
        """Waits."""
        ...


class Cluster:
    """The objects of one namespace. Every method raises ClusterError."""

    def __init__(self, client: "DynamicClient", namespace: str, clock: Clock = time) -> None:
        self._client = client
        self.namespace = namespace
        self.clock = clock

    def get(self, kind: str, name: str) -> Object | None:
        """An object; None if there is none."""
        ask = self._request(kind, "get", name=name)
        with suppress(NotThere):
            return self._try(lambda: _read(ask()), "get", f"{kind} {name}")
        return None

    def find(self, kind: str, *, labels: str = "", fields: str = "") -> list[Object]:
        """The objects that both selectors take."""
        return list(self._list(kind, labels, fields)[0].values())

    def follow(self, kind: str, *, labels: str) -> Iterator[list[Object]]:
        """The objects now, and again after each change, and every few seconds without one; never ends.

        Listed, watched for a while, and listed again: what a watch loses, in a stream that drops or by a
        410 because it fell behind, the next list finds.
        """
        while True:
            found, version = self._list(kind, labels)
            yield list(found.values())
            began = self.clock.monotonic()
            with closing(self._changes(kind, labels, version)) as changes:
                for change in changes:
                    name = change["object"]["metadata"]["name"]
                    found.pop(name, None)
                    if change["type"] != "DELETED":
                        found[name] = change["object"]
                    yield list(found.values())
            self.clock.sleep(max(0.0, LEAST_S - (self.clock.monotonic() - began)))

    def apply(self, body: Object) -> None:
        """Creates an object, or makes its fields what `body` says; raises FieldsTaken for those of others."""
        kind, name = body["kind"], body["metadata"]["name"]
        ask = self._request(
            kind, "server_side_apply", name=name, body=body, field_manager=MANAGER, force_conflicts=False
        )
        self._try(lambda: _read(ask()), "apply", f"{kind} {name}")

    def write(self, body: Object) -> None:
        """Creates an object, or replaces the very version that was read. Sent once.

        Raises Changed if somebody has created or changed it in the meantime.
        """
        kind, name = body["kind"], body["metadata"]["name"]
        is_new = "resourceVersion" not in body["metadata"]
        verb = "create" if is_new else "replace"
        ask = self._request(kind, verb, body=body, **({} if is_new else {"name": name}))
        self._try(lambda: _read(ask()), verb, f"{kind} {name}", pauses=())

    def delete(self, kind: str, name: str, uid: str) -> None:
        """Deletes this very object, after all that it owns; returns before they are gone."""
        options = {"propagationPolicy": "Foreground", "preconditions": {"uid": uid}}
        ask = self._request(kind, "delete", name=name, body=options)
        with suppress(NotThere):
            self._try(lambda: _read(ask()), "delete", f"{kind} {name}")

    def log(self, pod: str, since: str) -> Iterator[tuple[str, str]]:
        """(time, line) of a pod's container as it writes them, from the time `since` on, which may be empty.

        Ends with the container, with the connection, or when nothing is said for a while.
        """
        path = self._resource("Pod").path(name=pod, namespace=self.namespace) + "/log"
        query = [("container", "plaudit"), ("follow", "true"), ("timestamps", "true")]
        query += [("sinceTime", since)] if since else []
        options = {"serialize": False, "_request_timeout": (REQUEST_S, LOG_S)}
        response = self._try(
            lambda: self._client.request("get", path, query_params=list(query), **options),
            "get", f"the log of Pod {pod}",
        )  # fmt: skip
        for line in _lines(response):
            when, _, text = line.partition(" ")
            yield when, text

    def _list(self, kind: str, labels: str, fields: str = "") -> tuple[dict[str, Object], str]:
        """By name; and the version to watch from."""
        ask = self._request(kind, "get", label_selector=labels or None, field_selector=fields or None)
        found = self._try(lambda: _read(ask()), "list", kind)
        by_name = {each["metadata"]["name"]: each for each in found["items"]}
        return by_name, found["metadata"]["resourceVersion"]

    def _changes(self, kind: str, labels: str, version: str) -> Generator[Object, None, None]:
        """Events from `version` on; ends when the server ends them, for whatever reason but a final no."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        ask = self._request(
            kind, "get", label_selector=labels, watch=True, resource_version=version,
            timeout_seconds=WATCH_S, _request_timeout=(REQUEST_S, WATCH_S + REQUEST_S),
        )  # fmt: skip
        try:
            response = ask()
        except ApiException as error:
            if error.status in FINAL:
                raise refusal(error, "watch", kind) from None
            return
        except HTTPError:
            return
        for line in _lines(response):
            change = json.loads(line)
            if change["type"] == "ERROR":
                return
            yield change

    def _request(self, kind: str, verb: str, **options: Any) -> Callable[[], "HTTPResponse"]:  # noqa: ANN401
        """A request to be sent, with a deadline."""
        options = {"namespace": self.namespace, "serialize": False, "_request_timeout": REQUEST_S} | options
        act = getattr(self._resource(kind), verb)
        return lambda: act(**options)

    def _resource(self, kind: str) -> "Resource":
        known: KnownKinds = self._client.resources
        return known.get(api_version=VERSIONS[kind], kind=kind)

    def _try(
        self, ask: Callable[[], AnswerT], verb: str, what: str, pauses: Sequence[float] | None = None
    ) -> AnswerT:
        """Asks until there is an answer, once more after each of `pauses` (PAUSES_S) at most."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        end = self.clock.monotonic() + PATIENCE_S
        for pause in (*(PAUSES_S if pauses is None else pauses), None):
            asked = None
            try:
                return ask()
            except ApiException as error:
                if error.status not in PASSING:
                    raise refusal(error, verb, what) from None
                said, asked = reason(error), asked_pause(error)
            except HTTPError as error:
                said = " ".join(str(error).split())
            except ValueError:  # a proxy's page
                said = "an answer that is no JSON"
            if pause is None or self.clock.monotonic() >= end:
                break
            self.clock.sleep(min(pause if asked is None else asked, LONGEST_PAUSE_S))
        raise ApiUnreachable(f"{self._client.configuration.host}: {verb} {what}: {said}")


def open_cluster(context: str | None, namespace: str) -> Cluster:
    """The namespace of the cluster that `connect` finds. Raises ConfigError."""
    return Cluster(connect(context), namespace)


def _read(response: "HTTPResponse") -> Object:
    return dict(json.loads(response.data))


def _lines(response: "HTTPResponse") -> Iterator[str]:
    """Whole lines of a stream, until it ends or breaks."""
    from kubernetes.watch.watch import iter_resp_lines
    from urllib3.exceptions import HTTPError

    with closing(response), suppress(HTTPError):
        yield from iter_resp_lines(response)
