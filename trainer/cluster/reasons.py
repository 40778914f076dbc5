"""Why a pod doesn't start, as the cluster tells it: in conditions, container states, and events."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from trainer.cluster.calls import Object

EventsOf: TypeAlias = Callable[[Object], Sequence[Object]]
"""Asks for the events about an object."""

HOPELESS = frozenset({"ErrImageNeverPull", "InvalidImageName", "CrashLoopBackOff", "OOMKilled"})
"""Reasons that nothing but a person mends; all others are given some time."""
IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"})
STARTING = frozenset({"ContainerCreating", "PodInitializing"})
NODE_IS_COMING = frozenset({"TriggeredScaleUp", "Nominated"})
"""Events of cluster-autoscaler and Karpenter."""


@dataclass(frozen=True)
class Trouble:
    """Something that is wrong with a workload."""

    where: str
    """Such as "Pod plaudit-policy-5d9f-x2x"."""
    reason: str
    """As the cluster names it, such as "ImagePullBackOff"."""
    message: str
    hopeless: bool
    """Whether it won't pass by itself."""

    @property
    def key(self) -> tuple[str, str]:
        """The same at every look, while the message's numbers change, and a pull begins and waits in turn."""
        return self.where, "image" if self.reason in IMAGE else self.reason

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}: {self.message}"


def pod_troubles(pod: Object, events_of: EventsOf) -> list[Trouble]:
    """What keeps a pod from being ready.

    Events count only before its containers run: later, its probes warn for as long as a model loads.
    """
    events = events_of(pod) if pod["status"]["phase"] == "Pending" else ()
    found = [*_scheduling(pod, events), *_containers(pod)]
    return found or list(_last_warning(f"Pod {pod['metadata']['name']}", events))


def creation_troubles(where: str, events: Sequence[Object]) -> list[Trouble]:
    """What keeps a Job from having a pod; `events` are those about it."""
    failed = [each for each in events if each.get("reason") == "FailedCreate"]
    return [denial(where, each.get("message", "")) for each in sorted(failed, key=_time)[-1:]]


def denial(where: str, message: str) -> Trouble:
    """A pod that could not even be created; "violates PodSecurity" is for ever."""
    return Trouble(where, "FailedCreate", _line(message), "violates PodSecurity" in message)


def ended(pod: Object) -> str:
    """How the container of a finished pod ended, in words; empty if it didn't."""
    for status in pod["status"].get("containerStatuses", ()):
        if end := status["state"].get("terminated"):
            return _end(pod, status["name"], end)
    return str(pod["status"].get("message", ""))  # evicted, or lost with its node


def exit_code(pod: Object) -> int | None:
    """Of the container of a finished pod; None while there is none."""
    statuses = pod["status"].get("containerStatuses", ())
    return next((s["state"]["terminated"]["exitCode"] for s in statuses if "terminated" in s["state"]), None)


def _scheduling(pod: Object, events: Sequence[Object]) -> Iterator[Trouble]:
    coming = any(each.get("reason") in NODE_IS_COMING for each in events)
    for each in pod["status"].get("conditions", ()):
        if each["type"] == "PodScheduled" and each["status"] == "False" and not coming:
            message = _line(each.get("message", ""))
            yield Trouble(f"Pod {pod['metadata']['name']}", "FailedScheduling", message, False)


def _containers(pod: Object) -> Iterator[Trouble]:
    status = pod["status"]
    for each in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        waiting = each["state"].get("waiting", {}).get("reason", "")
        last = each.get("lastState", {}).get("terminated", {})
        reason = "OOMKilled" if last.get("reason") == "OOMKilled" and not each["ready"] else waiting
        if reason and reason not in STARTING:
            message = _message(pod, each, reason, last)
            yield Trouble(f"Pod {pod['metadata']['name']}", reason, _line(message), reason in HOPELESS)


def _message(pod: Object, status: Object, reason: str, last: Object) -> str:
    if reason in IMAGE:
        said = status["state"]["waiting"].get("message", "")
        return f"image {status['image']}: {said}" if said else f"image {status['image']}"
    if last and reason in ("OOMKilled", "CrashLoopBackOff"):
        return _end(pod, status["name"], last)
    return str(status["state"]["waiting"].get("message", ""))


def _end(pod: Object, container: str, end: Object) -> str:
    if end.get("reason") == "OOMKilled":
        return f"{container} took more memory than its limit, {_memory_limit(pod, container)}"
    said = f": {end['message']}" if end.get("message") else ""
    return f"{container} ended with exit code {end['exitCode']}{said}"


def _memory_limit(pod: Object, container: str) -> str:
    specs: list[dict[str, Any]] = [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]
    (spec,) = (each for each in specs if each["name"] == container)
    return str(spec.get("resources", {}).get("limits", {}).get("memory", "its node's"))


def _last_warning(where: str, events: Sequence[Object]) -> Iterator[Trouble]:
    """The newest event, if it is a warning: what came before it has passed."""
    for each in sorted(events, key=_time)[-1:]:
        if each.get("type") == "Warning":
            yield Trouble(where, each.get("reason", "Warning"), _line(each.get("message", "")), False)


def _time(event: Object) -> str:
    """When it was seen last; times of the API sort as text."""
    series = (event.get("series") or {}).get("lastObservedTime")
    return str(series or event.get("lastTimestamp") or event.get("eventTime"))


def _line(text: str) -> str:
    return " ".join(text.split())
