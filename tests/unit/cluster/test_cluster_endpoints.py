"""Where a Service's pods are, against an API server that loses events, falls silent and comes back."""

import threading

import pytest
from api_server import Asked, Refusal, slice_of

from trainer.cluster import endpoints
from trainer.cluster.calls import Cluster
from trainer.cluster.endpoints import EndpointWatch
from trainer.cluster.errors import NotAllowed

SERVICE = "plaudit-policy"


class Turns(Cluster):
    """A cluster whose watches end at once, and whose next list waits for the test to ask for it."""

    def __init__(self, client, namespace, clock):
        super().__init__(client, namespace, clock)
        self.next, self.listed = threading.Semaphore(1), threading.Semaphore(0)

    def _list(self, *arguments):
        assert self.next.acquire(timeout=30)
        try:
            return super()._list(*arguments)
        finally:
            self.listed.release()

    def turn(self):
        """Lets it list once, and returns when what was found counts: it asks for the list after that."""
        for _ in range(2):
            self.next.release()
        for _ in range(2):
            assert self.listed.acquire(timeout=30)


@pytest.fixture
def turns(cluster, clock):
    return Turns(cluster._client, cluster.namespace, clock)


@pytest.fixture
def watch(turns, monkeypatch):
    """watch(port) → an EndpointWatch that has listed once."""
    monkeypatch.setattr(endpoints, "PAUSE_S", 0.0)
    opened = []

    def make(port="grpc"):
        opened.append(EndpointWatch(turns, SERVICE, port))
        assert turns.listed.acquire(timeout=30)
        return opened[-1]

    yield make
    for each in opened:
        each.close()
    turns.next.release(5)


def test_ready_pods_are_there_at_once_with_the_port_of_that_name(server, watch):
    server.put("endpointslices", slice_of("a", "10.0.0.1", ("10.0.0.2", {"ready": False}), ("10.0.0.3", {})))
    server.put("endpointslices", slice_of("b", "fd00::7", port=7))
    server.put("endpointslices", slice_of("c", "10.9.9.9", service="plaudit-reward"))
    server.put("endpointslices", slice_of("d", endpoints=None))
    assert watch().addresses() == {"10.0.0.1:50051", "10.0.0.3:50051", "[fd00::7]:7"}


def test_a_port_by_number_needs_no_name(server, watch):
    server.put("endpointslices", slice_of("a", "10.0.0.1", ports=None))
    assert watch("50077").addresses() == {"10.0.0.1:50077"}


def test_a_port_that_no_slice_has_gives_no_pod(server, watch):
    server.put("endpointslices", slice_of("a", "10.0.0.1"))
    assert watch("metrics").addresses() == frozenset()


def test_pods_come_and_go(server, watch, turns):
    found = watch()
    assert found.addresses() == frozenset()
    server.put("endpointslices", slice_of("a", "10.0.0.1", "10.0.0.2"))
    turns.turn()
    assert found.addresses() == {"10.0.0.1:50051", "10.0.0.2:50051"}
    server.put("endpointslices", slice_of("a", "10.0.0.1", ("10.0.0.2", {"ready": False, "serving": True})))
    turns.turn()
    assert found.addresses() == {"10.0.0.1:50051"}
    server.remove("endpointslices", "a")
    turns.turn()
    assert found.addresses() == frozenset()


@pytest.mark.parametrize("fault", ["gone", "drop", Refusal(410, "too old"), Refusal(500, "no"), "reset"])
def test_a_watch_that_breaks_is_followed_by_a_list(fault, server, watch, turns):
    server.fail("watch", "endpointslices", fault, times=3)
    found = watch()
    server.put("endpointslices", slice_of("a", "10.0.0.1"))
    turns.turn()
    assert found.addresses() == {"10.0.0.1:50051"}


def test_while_the_api_server_is_away_known_pods_stay_known(server, watch, turns, caplog):
    server.put("endpointslices", slice_of("a", "10.0.0.1"))
    server.fail("watch", "endpointslices", "reset", times=9)
    found = watch()
    server.fail("list", "endpointslices", Refusal(503, "etcd has no leader"), times=6)
    server.put("endpointslices", slice_of("a", "10.0.0.5"))
    turns.next.release()
    assert turns.listed.acquire(timeout=30)  # the list that failed, six times
    assert found.addresses() == {"10.0.0.1:50051"}
    turns.turn()
    assert found.addresses() == {"10.0.0.5:50051"}
    assert "etcd has no leader" in caplog.text


def test_who_may_not_list_learns_it_before_anything_begins(server, turns):
    server.rules = []
    with pytest.raises(NotAllowed, match="cannot list resource"):
        EndpointWatch(turns, SERVICE, "grpc")


def test_it_asks_for_what_the_role_allows(server, watch, turns):
    watch()
    turns.turn()
    group = "discovery.k8s.io"
    assert set(server.asked) == {
        Asked("list", group, "endpointslices"),
        Asked("watch", group, "endpointslices"),
    }
    assert all("timeoutSeconds" in query for verb, _, query in server.queries if verb == "watch")
