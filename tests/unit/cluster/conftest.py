"""A cluster that is an API server in this process, and time that passes only when somebody sleeps."""

import api_server
import pytest
from api_server import NAMESPACE, ApiServer, Clock

from trainer.cluster import __main__ as command, calls
from trainer.cluster.api import connect
from trainer.cluster.calls import Cluster


@pytest.fixture
def server(clock):
    with ApiServer(clock) as server:
        yield server


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def kubeconfig(server, tmp_path, monkeypatch):
    """Of the API server, as the current context "here"; other contexts lead to nobody, or expect TLS."""
    path = tmp_path / "kubeconfig"
    secure = server.url.replace("http:", "https:")
    clusters = {"here": server.url, "nobody": "http://127.0.0.1:9", "tls": secure}
    path.write_text(api_server.kubeconfig(clusters))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    return path


@pytest.fixture
def cluster(kubeconfig, clock):
    return Cluster(connect(), NAMESPACE, clock)


@pytest.fixture
def run(cluster, monkeypatch, capsys):
    """run("wait", …) → (exit code, stdout, stderr), on the cluster of this test."""
    monkeypatch.setattr(calls, "open_cluster", lambda context, namespace: cluster)

    def arguments(*words):
        code = command.main([str(word) for word in words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return arguments
