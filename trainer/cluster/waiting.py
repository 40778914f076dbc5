"""Waiting in order: the models are made, then the services are ready, then the trainer works."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from trainer.cluster import workloads
from trainer.cluster.calls import Clock, Cluster, Object
from trainer.cluster.errors import Misused, TimedOut, WorkloadFailed
from trainer.cluster.reasons import EventsOf, Trouble
from trainer.cluster.workloads import Standing

OURS = "app.kubernetes.io/part-of=plaudit"
MODELS, TRAINER = "plaudit-models", "plaudit-trainer"
SERVICES = ("plaudit-policy", "plaudit-reward", "plaudit-reference", "plaudit-gateway")
GRACE_S = 60.0
"""How long what may pass by itself is given to pass: a volume is being made, a registry is slow."""

Until: TypeAlias = Literal["services", "training", "done"]
Tell: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class Stage:
    """Workloads that are waited for together."""

    name: str
    standings: Sequence[Standing]

    @property
    def waiting(self) -> list[Standing]:
        """Those that aren't there yet."""
        return [each for each in self.standings if not each.done]


class Grace:
    """Tells troubles that stay from those that pass."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since: dict[tuple[str, str], float] = {}

    def check(self, troubles: Sequence[Trouble]) -> None:
        """Raises WorkloadFailed if any is hopeless, or has been there for GRACE_S at every look."""
        now = self._clock.monotonic()
        self._since = {each.key: self._since.get(each.key, now) for each in troubles}
        if any(each.hopeless or now - self._since[each.key] >= GRACE_S for each in troubles):
            raise WorkloadFailed([str(each) for each in troubles])


class Teller:
    """Says what is new, once."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._told: set[str] = set()

    def say(self, lines: Sequence[str]) -> None:
        """The lines that weren't among the last ones."""
        for line in lines:
            if line not in self._told:
                self._tell(line)
        self._told = set(lines)


def wait_for(cluster: Cluster, until: Until, timeout: float, tell: Tell) -> None:
    """Returns when everything up to `until` is there; `timeout` in seconds.

    Raises Misused where nothing is applied, WorkloadFailed with the reasons, TimedOut.
    """
    end = cluster.clock.monotonic() + timeout
    grace, teller = Grace(cluster.clock), Teller(tell)
    for pods in cluster.follow("Pod", labels=OURS):
        stages = look(cluster, pods, until)
        first = next((stage for stage in stages if stage.waiting), None)
        if first is None:
            teller.say([f"{stage.name}: ready" for stage in stages])
            return
        lines = list(told(first))
        teller.say(lines)
        # A later stage may be in trouble just because it waits for this one.
        everywhere = (each for stage in stages for one in stage.waiting for each in one.troubles)
        here = [each for one in first.waiting for each in one.troubles]
        grace.check([each for each in everywhere if each.hopeless or each in here])
        if cluster.clock.monotonic() >= end:
            raise TimedOut("\n".join([*lines, f"not there after {timeout:.0f} s; wait again"]))


def look(cluster: Cluster, pods: Sequence[Object], until: Until) -> list[Stage]:
    """The stages up to `until`, as they are now. Raises Misused for a workload that isn't there."""
    jobs = {each["metadata"]["name"]: each for each in cluster.find("Job", labels=OURS)}
    deployments = {each["metadata"]["name"]: each for each in cluster.find("Deployment", labels=OURS)}
    sets = cluster.find("ReplicaSet", labels=OURS)
    needed = {**dict.fromkeys(SERVICES, deployments), **({} if until == "services" else {TRAINER: jobs})}
    missing = [name for name, found in needed.items() if name not in found]
    if missing:
        raise Misused(
            f"{', '.join(missing)}: not in the namespace {cluster.namespace}; first apply the manifests: "
            "kubectl apply --server-side --field-manager=plaudit -k k8s/overlays/…"
        )
    events_of, stages = events_about(cluster), []
    if MODELS in jobs:
        stages.append(Stage("models", [workloads.job(jobs[MODELS], pods, events_of)]))
    services = [workloads.deployment(deployments[name], sets, pods, events_of) for name in SERVICES]
    stages.append(Stage("services", services))
    if until != "services":
        training = workloads.job(jobs[TRAINER], pods, events_of, until_ready=until == "training")
        stages.append(Stage("trainer", [training]))
    return stages


def events_about(cluster: Cluster) -> EventsOf:
    """Asks `cluster` for the events about an object."""
    return lambda each: cluster.find("Event", fields=f"involvedObject.uid={each['metadata']['uid']}")


def told(stage: Stage) -> list[str]:
    """What a person wants to know of a stage that isn't there yet."""
    lines = []
    for each in stage.waiting:
        lines.append(f"waiting for {each.name}: {each.progress}")
        lines += [f"  {trouble}" for trouble in each.troubles]
    return lines
