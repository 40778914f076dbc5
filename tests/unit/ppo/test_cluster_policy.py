"""services.policy on a cluster: what may stand there, and how the cluster's answers end a run."""

import pytest

from trainer.cluster.calls import Cluster
from trainer.cluster.errors import ApiUnreachable, NotAllowed
from trainer.cluster.lease import Lease, LeaseHeld
from trainer.errors import ConfigError, RunHeld, ServiceUnreachable, Stopped
from trainer.ppo import cluster_policy
from trainer.ppo.cluster_policy import ClusterService, sole_trainer, watch_pods
from trainer.ppo.run_sections import ServicesSection
from trainer.stopping import StopSignal

TARGET = "kubernetes:///plaudit-policy:grpc"


def section(*policy):
    return ServicesSection(policy=policy, reference="a:2", reward="a:3", connect_timeout=1.0)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (TARGET, ("plaudit-policy", "plaudit", "grpc")),
        ("kubernetes:///plaudit-policy.team-a:50051", ("plaudit-policy", "team-a", "50051")),
    ],
)
def test_a_service_of_the_cluster(target, expected):
    assert section(target).policy == (target,)
    service = ClusterService.parse(target)
    assert (service.name, service.namespace, service.port) == expected


def test_the_namespace_is_the_pods_own_where_none_is_named(monkeypatch):
    monkeypatch.setattr(cluster_policy, "own_namespace", lambda: "mine")
    assert ClusterService.parse(TARGET).namespace == "mine"
    assert ClusterService.parse("kubernetes:///a.theirs:1").namespace == "theirs"


@pytest.mark.parametrize(
    "target",
    ["kubernetes://a:1", "kubernetes:///a", "kubernetes:///a:", "kubernetes:///A:1", "kubernetes:///a.b.c:1",
     "dns:///a:1", "kubernetes:///:1"],
)  # fmt: skip
def test_other_targets_are_refused(target):
    with pytest.raises(ValueError, match="pattern"):
        section(target)


def test_a_service_stands_alone():
    with pytest.raises(
        ValueError, match="policy must be one kubernetes:///SERVICE:PORT, or a list of host:port"
    ):
        section(TARGET, "a:1")


@pytest.fixture
def answers(monkeypatch):
    """answers(error): the cluster's, to whatever it is asked."""

    def make(error):
        def raising(*arguments, **options):
            raise error

        for name in ("get", "_list", "write"):
            monkeypatch.setattr(Cluster, name, raising)
        monkeypatch.setattr(
            cluster_policy, "open_cluster", lambda context, namespace: Cluster(None, namespace)
        )

    return make


def test_what_the_trainer_may_not_do_is_a_wrong_configuration(answers):
    answers(NotAllowed("list EndpointSlice: cannot list"))
    with pytest.raises(
        ConfigError, match=r"services\.policy: kubernetes:///plaudit-policy:grpc: .*Role"
    ) as caught:
        watch_pods(TARGET)
    assert caught.value.exit_code == 64


def test_an_api_server_that_is_away_is_a_service_that_is_away(answers):
    answers(ApiUnreachable("https://10.96.0.1: list EndpointSlice: timed out"))
    with pytest.raises(ServiceUnreachable, match=r"services\.policy: .*timed out") as caught:
        watch_pods(TARGET)
    assert caught.value.exit_code == 69
    with pytest.raises(ServiceUnreachable), sole_trainer(section(TARGET), "run", StopSignal()):
        pass


def test_outside_a_cluster_it_says_what_is_missing(monkeypatch, tmp_path):
    location = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
    monkeypatch.setattr(location, str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"services\.policy: kubernetes:///.*KUBECONFIG"):
        watch_pods(TARGET)


def test_named_replicas_need_no_lease(answers):
    answers(AssertionError("nobody is asked"))
    with sole_trainer(section("a:1"), "run", StopSignal()):
        pass


@pytest.mark.parametrize(("stopping", "error"), [(False, RunHeld), (True, Stopped)])
def test_a_lease_that_stays_with_another_ends_the_run(stopping, error, answers, monkeypatch):
    answers(AssertionError("not asked"))

    def held(*arguments):
        raise LeaseHeld("another trainer, pod-9, has held the Lease since noon")

    monkeypatch.setattr(Lease, "acquire", held)
    stop = StopSignal()
    if stopping:
        stop.request()
    with pytest.raises(error, match="another trainer, pod-9"), sole_trainer(section(TARGET), "run", stop):
        pass


def test_the_lease_is_held_for_the_run_and_given_back_whatever_ends_it(answers, monkeypatch):
    answers(AssertionError("not asked"))
    told = []
    monkeypatch.setattr(Lease, "acquire", lambda self, patience, wait: told.append((self._name, patience)))
    monkeypatch.setattr(Lease, "release", lambda self: told.append("given back"))
    with pytest.raises(KeyError), sole_trainer(section(TARGET), "run", StopSignal()):
        told.append("training")
        raise KeyError
    assert told == [("plaudit-policy-trainer", 1.0), "training", "given back"]
