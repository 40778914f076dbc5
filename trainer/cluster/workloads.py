"""How far Deployments and Jobs are, by what the cluster says of them and of their pods."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.cluster.calls import Object
from trainer.cluster.reasons import EventsOf, Trouble, creation_troubles, denial, ended, pod_troubles

REVISION = "deployment.kubernetes.io/revision"


@dataclass(frozen=True)
class Standing:
    """How far one workload is."""

    name: str
    """Such as "Deployment plaudit-policy"."""
    done: bool
    progress: str
    troubles: tuple[Trouble, ...] = ()


def deployment(each: Object, sets: Sequence[Object], pods: Sequence[Object], events_of: EventsOf) -> Standing:
    """A Deployment is done when all its replicas are of its newest template, and available.

    Only the newest ReplicaSet's pods count: those of a former one are on their way out.
    """
    name = f"Deployment {each['metadata']['name']}"
    wanted, status = each["spec"].get("replicas", 1), each.get("status", {})
    updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    if status.get("observedGeneration", 0) < each["metadata"]["generation"]:
        return Standing(name, False, "not yet seen by the cluster")
    progress = f"{available} of {wanted} available, {updated} of the newest template"
    if updated >= wanted and available >= wanted and status.get("replicas", 0) == updated:
        return Standing(name, True, progress)
    return Standing(name, False, progress, tuple(_rollout_troubles(each, sets, pods, events_of)))


def job(each: Object, pods: Sequence[Object], events_of: EventsOf, *, until_ready: bool = False) -> Standing:
    """A Job is done when it is complete, or with `until_ready` when a pod of it is ready."""
    name, mine = f"Job {each['metadata']['name']}", owned_by(each, pods)
    if condition(each, "Complete"):
        return Standing(name, True, "complete")
    if failed := condition(each, "Failed"):
        return Standing(name, False, "failed", (_failure(name, failed, mine),))
    alive = [pod for pod in mine if _is_alive(pod)]
    if until_ready and any(condition(pod, "Ready") for pod in alive):
        return Standing(name, True, "its pod is ready")
    troubles = _troubles(alive, events_of) if alive else creation_troubles(name, events_of(each))
    return Standing(name, False, _progress(alive, mine), tuple(troubles))


def condition(each: Object, kind: str) -> Object | None:
    """A condition of an object, if it is true."""
    found = (c for c in each.get("status", {}).get("conditions", ()) if c["type"] == kind)
    return next((c for c in found if c["status"] == "True"), None)


def owned_by(owner: Object, found: Sequence[Object]) -> list[Object]:
    """Those that `owner` has made, the oldest first."""
    uid = owner["metadata"]["uid"]
    mine = (each for each in found if uid in (o["uid"] for o in each["metadata"].get("ownerReferences", ())))
    return sorted(mine, key=lambda each: str(each["metadata"]["creationTimestamp"]))


def _rollout_troubles(
    each: Object, sets: Sequence[Object], pods: Sequence[Object], events_of: EventsOf
) -> list[Trouble]:
    revision = each["metadata"].get("annotations", {}).get(REVISION)
    found: list[Trouble] = []
    for replicas in owned_by(each, sets):
        if replicas["metadata"].get("annotations", {}).get(REVISION) != revision:
            continue
        if failure := condition(replicas, "ReplicaFailure"):
            found.append(denial(f"ReplicaSet {replicas['metadata']['name']}", failure.get("message", "")))
        found += _troubles([pod for pod in owned_by(replicas, pods) if _is_alive(pod)], events_of)
    for late in each.get("status", {}).get("conditions", ()):
        if late.get("reason") == "ProgressDeadlineExceeded":
            name = f"Deployment {each['metadata']['name']}"
            found.append(Trouble(name, late["reason"], late.get("message", ""), True))
    return found


def _is_alive(pod: Object) -> bool:
    """Neither ended, as one that was evicted, nor on its way out."""
    return pod["status"]["phase"] in ("Pending", "Running") and "deletionTimestamp" not in pod["metadata"]


def _troubles(pods: Sequence[Object], events_of: EventsOf) -> list[Trouble]:
    not_ready = [pod for pod in pods if not condition(pod, "Ready")]
    return [trouble for pod in not_ready for trouble in pod_troubles(pod, events_of)]


def _failure(name: str, failed: Object, pods: Sequence[Object]) -> Trouble:
    last = f"; {ended(pods[-1])}" if pods and ended(pods[-1]) else ""
    return Trouble(name, failed.get("reason", "Failed"), failed.get("message", "") + last, True)


def _progress(alive: Sequence[Object], pods: Sequence[Object]) -> str:
    now = f"its pod is {alive[-1]['status']['phase'].lower()}" if alive else "no pod yet"
    former = [end for pod in pods if pod not in alive and (end := ended(pod))]
    return f"{now}; try {len(former) + 1}, since {former[-1]}" if former else now
