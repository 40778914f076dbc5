"""A policy in a Kubernetes cluster: its pods as they come and go, and the Lease of the one who trains it."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from trainer.cluster.api import own_namespace
from trainer.cluster.calls import Cluster, open_cluster
from trainer.cluster.endpoints import EndpointWatch
from trainer.cluster.errors import ApiUnreachable, ClusterError
from trainer.cluster.lease import Lease, LeaseHeld
from trainer.errors import ConfigError, RunHeld, ServiceUnreachable
from trainer.ppo.run_sections import CLUSTER_SCHEME, ServicesSection
from trainer.stopping import StopSignal

DEFAULT_NAMESPACE = "plaudit"
"""Of a Service whose namespace isn't named, outside a cluster."""


@dataclass(frozen=True)
class ClusterService:
    """kubernetes:///SERVICE[.NAMESPACE]:PORT, as gRPC's resolvers for Kubernetes have it."""

    target: str
    name: str
    namespace: str
    port: str

    @classmethod
    def parse(cls, target: str) -> "ClusterService":
        """A target that the configuration has checked; the namespace is this pod's where none is named."""
        service, port = target.removeprefix(CLUSTER_SCHEME).rsplit(":", 1)
        name, _, namespace = service.partition(".")
        return cls(target, name, namespace or own_namespace() or DEFAULT_NAMESPACE, port)

    def open(self) -> Cluster:
        """The namespace that it is in. Raises ConfigError outside a cluster and without a kubeconfig."""
        return open_cluster(None, self.namespace)


def watch_pods(target: str) -> EndpointWatch:
    """Watches where the pods of a Service are. Raises ConfigError, ServiceUnreachable."""
    service = ClusterService.parse(target)
    with _cluster_errors(service):
        return EndpointWatch(service.open(), service.name, service.port)


@contextmanager
def sole_trainer(services: ServicesSection, run_id: str, stop: StopSignal) -> Iterator[None]:
    """Holds the Lease on a policy in a cluster, so that no other trainer pushes to it; nothing elsewhere.

    Waits `services.connect_timeout` for another trainer to end, and raises RunHeld then, or Stopped if this
    run is to stop. A Lease that somebody takes stops the run.
    """
    target = services.policy[0]
    if not target.startswith(CLUSTER_SCHEME):
        yield
        return
    service = ClusterService.parse(target)
    with _cluster_errors(service):
        holder = f"{socket.gethostname()}_{run_id}"
        lease = Lease(service.open(), f"{service.name}-trainer", holder, stop.request)
        try:
            lease.acquire(services.connect_timeout, stop.wait)
        except LeaseHeld as held:
            if stop.requested:
                raise stop.error(str(held)) from held
            raise RunHeld(f"services.policy: {target}: {held}") from held
    try:
        yield
    finally:
        lease.release()


@contextmanager
def _cluster_errors(service: ClusterService) -> Iterator[None]:
    """What the cluster says, as errors of the trainer that name the key."""
    where = f"services.policy: {service.target}"
    try:
        yield
    except ConfigError as error:
        raise ConfigError([f"{where}: {problem}" for problem in error.problems]) from error
    except ApiUnreachable as error:
        raise ServiceUnreachable(f"{where}: {error}") from error
    except ClusterError as error:
        advice = "the trainer's ServiceAccount needs the Role plaudit-trainer of k8s/base/trainer.yaml"
        raise ConfigError([f"{where}: {error}; {advice}"]) from error
