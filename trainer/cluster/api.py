"""The way to a cluster's API server: by a pod's own account, or by a kubeconfig.

Give every request `_request_timeout=REQUEST_S`; without one it waits for ever.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import ConfigError

if TYPE_CHECKING:  # a second of imports: `--help` answers at once
    from kubernetes.client import ApiClient
    from kubernetes.dynamic import DynamicClient
    from kubernetes.dynamic.resource import Resource

REQUEST_S = 15
"""Seconds until a connection is there, and between two parts of an answer."""
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

PLURALS = {
    ("v1", "ConfigMap"): "configmaps",
    ("v1", "Event"): "events",
    ("v1", "Pod"): "pods",
    ("apps/v1", "Deployment"): "deployments",
    ("apps/v1", "ReplicaSet"): "replicasets",
    ("batch/v1", "Job"): "jobs",
    ("coordination.k8s.io/v1", "Lease"): "leases",
    ("discovery.k8s.io/v1", "EndpointSlice"): "endpointslices",
}
"""The kinds that are asked for, all of them in namespaces."""


class KnownKinds:
    """Stands for the client's discovery, whose requests have no deadline, and which keeps files in /tmp."""

    def __init__(self, client: "DynamicClient", cache_file: None) -> None:
        self._client = client

    def get(self, api_version: str, kind: str) -> "Resource":
        """What `client.resources.get` gives, without asking."""
        from kubernetes.dynamic.resource import Resource

        group, _, version = api_version.rpartition("/")
        return Resource(
            prefix="apis" if group else "api",
            group=group,
            api_version=version,
            kind=kind,
            name=PLURALS[api_version, kind],
            namespaced=True,
            client=self._client,
        )


def connect(context: str | None = None) -> "DynamicClient":
    """A client of the cluster around this pod, or of a kubeconfig's `context` (its current one if None).

    Asks nothing yet. Raises ConfigError where there is neither.
    """
    from kubernetes.dynamic import DynamicClient

    return DynamicClient(_api_client(context), discoverer=KnownKinds)


def own_namespace() -> str | None:
    """The namespace of this pod; None outside a cluster."""
    return NAMESPACE_FILE.read_text(encoding="utf-8").strip() if NAMESPACE_FILE.exists() else None


def _api_client(context: str | None) -> "ApiClient":
    from kubernetes import config
    from kubernetes.client import ApiClient, Configuration

    configuration = Configuration()
    try:
        if context is None and own_namespace() is not None:
            config.load_incluster_config(client_configuration=configuration)
        else:
            config.load_kube_config(context=context, client_configuration=configuration)
    except config.ConfigException as error:
        reason = str(error).rstrip(".")
        raise ConfigError.at("--context", f"{reason}; set KUBECONFIG, or run it in a pod") from None
    configuration.retries = False  # ours are bounded, and know what may be sent twice
    return ApiClient(configuration)
