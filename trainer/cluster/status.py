"""`status`: every workload in one table, and each run in one line."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.cluster.calls import Cluster, Object
from trainer.cluster.endpoints import host_port
from trainer.cluster.errors import Misused
from trainer.cluster.waiting import OURS, TRAINER
from trainer.cluster.workloads import condition, owned_by

if TYPE_CHECKING:
    from rich.table import Table

    from plaudit.clients import Run
    from plaudit.survey import Sight

ASK_S = 2.0
"""Seconds that a pod may take to answer."""
UNKNOWN = "–"
OUT_OF_REACH = (
    "– pods don't answer from here: run this in the cluster, or ask one through kubectl port-forward"
    " with plaudit status"
)
CONTAINER, PORT = "plaudit", "grpc"
COMPONENT = "app.kubernetes.io/component"


@dataclass(frozen=True)
class Row:
    """A workload."""

    name: str
    ready: str
    """Pods "1/2", or how a Job ended."""
    versions: tuple[str, ...]
    """Of its image; several while it rolls."""
    restarts: int
    addresses: tuple[str, ...]
    """HOST:PORT of the gRPC services of its running pods."""
    service: str
    """The name of its Service, which its pods' certificates have."""


def rows(cluster: Cluster) -> list[Row]:
    """All workloads of the namespace. Raises Misused if there is none."""
    pods, sets = cluster.find("Pod", labels=OURS), cluster.find("ReplicaSet", labels=OURS)
    found = [_deployment(each, sets, pods) for each in cluster.find("Deployment", labels=OURS)]
    found += [_job(each, owned_by(each, pods)) for each in cluster.find("Job", labels=OURS)]
    if not found:
        raise Misused(
            f"nothing of Plaudit is in the namespace {cluster.namespace}: give another --namespace, "
            "or first apply the manifests"
        )
    return found


def ask(found: Iterable[Row]) -> list["Sight"]:
    """What stands at the pods' addresses, asked all at once."""
    from plaudit.survey import survey

    names = {address: row.service for row in found for address in row.addresses}
    with misuse_told():
        return survey(list(names), ASK_S, names)


@contextmanager
def misuse_told() -> Iterator[None]:
    """Raises Misused where the environment's token can't be sent, or its certificates can't be read."""
    from plaudit.clients import InvalidArgument

    try:
        yield
    except InvalidArgument as error:
        raise Misused(f"pods can't be asked: {error.reason}") from None


def runs(sights: Iterable["Sight"]) -> Iterator["Run"]:
    """The runs of the trainers among them."""
    from plaudit.clients import PlauditError, TrainerClient

    for sight in sights:
        if sight.service == "trainer":
            with TrainerClient(sight.address, timeout=ASK_S, tls_name=TRAINER) as trainer:
                try:
                    yield trainer.get_run()
                except PlauditError:  # it has ended since
                    continue


def table(found: Iterable[Row], sights: Sequence["Sight"]) -> "Table":
    """A row for each workload; what nobody could be asked for is a dash."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, pad_edge=False, caption="queue: items/tokens", caption_justify="left")
    for name in ("workload", "ready", "version", "restarts", "step", "queue"):
        made.add_column(name, no_wrap=True)
    for row in found:
        seen = [each for each in sights if each.address in row.addresses and not each.away]
        versions = ", ".join(row.versions)
        made.add_row(row.name, row.ready, versions, str(row.restarts), _steps(row, seen), _queue(row, seen))
    return made


def troubles(found: Iterable[Row], sights: Sequence["Sight"]) -> Iterator[str]:
    """A line for each workload none of whose pods told what it was asked, with the first one's reason."""
    for row in found:
        mine = [each for each in sights if each.address in row.addresses]
        if mine and all(each.error for each in mine):
            yield f"{row.name}: {mine[0].error}"


def run_text(run: "Run") -> str:
    """A run in one line."""
    shown = {"reward": "objective/scores", "KL": "objective/kl"}
    numbers = [f"{name} {run.metrics[key]:.4g}" for name, key in shown.items() if key in run.metrics]
    return ", ".join([f"{run.run_id}: {run.state}, step {run.step} of {run.total_steps}", *numbers])


def grpc_address(pod: Object) -> str | None:
    """Where a running pod's gRPC service listens; None if it has none, or doesn't run."""
    ports = [port for each in pod["spec"]["containers"] for port in each.get("ports", ())]
    port = next((each["containerPort"] for each in ports if each.get("name") == PORT), None)
    host = pod["status"].get("podIP")
    return host_port(host, port) if port and host and pod["status"]["phase"] == "Running" else None


def _deployment(each: Object, sets: Sequence[Object], pods: Sequence[Object]) -> Row:
    mine = [pod for replicas in owned_by(each, sets) for pod in owned_by(replicas, pods)]
    ready = sum(condition(pod, "Ready") is not None for pod in mine)
    return _row(each, f"{ready}/{each['spec'].get('replicas', 1)}", mine, 0)


def _job(each: Object, pods: Sequence[Object]) -> Row:
    end = next((kind for kind in ("Complete", "Failed") if condition(each, kind)), "")
    ready = sum(condition(pod, "Ready") is not None for pod in pods)
    return _row(each, end.lower() or f"{ready}/1", pods, each.get("status", {}).get("failed", 0))


def _row(each: Object, ready: str, pods: Sequence[Object], failed: int) -> Row:
    specs = [pod["spec"] for pod in pods] or [each["spec"]["template"]["spec"]]
    images = [each["image"] for spec in specs for each in spec["containers"] if each["name"] == CONTAINER]
    statuses = [status for pod in pods for status in pod["status"].get("containerStatuses", ())]
    return Row(
        name=each["metadata"]["name"],
        ready=ready,
        versions=tuple(sorted(set(map(version, images)))),
        restarts=failed + sum(status["restartCount"] for status in statuses),
        addresses=tuple(address for pod in pods if (address := grpc_address(pod)) is not None),
        service=f"plaudit-{each['metadata']['labels'][COMPONENT]}",
    )


def version(image: str) -> str:
    """The tag of an image, or the beginning of its digest."""
    name, _, digest = image.partition("@")
    return digest[:19] if digest else name.rpartition("/")[2].partition(":")[2] or "latest"


def _steps(row: Row, seen: Sequence["Sight"]) -> str:
    if not row.addresses:
        return ""
    return ", ".join(dict.fromkeys(each.step for each in seen if each.step)) or UNKNOWN


def _queue(row: Row, seen: Sequence["Sight"]) -> str:
    if not row.addresses:
        return ""
    queues = [each.queue for each in seen if each.queue is not None]
    if not queues:
        return "" if seen else UNKNOWN  # a trainer has none
    return f"{sum(each.items for each in queues):,}/{sum(each.tokens for each in queues):,}"
