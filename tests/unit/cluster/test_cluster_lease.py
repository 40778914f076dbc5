"""One trainer at a time: the Lease, against an API server and a clock that the tests drive."""

import copy
import threading

import pytest
from api_server import Asked, Refusal

from trainer.cluster import lease as lease_module
from trainer.cluster.errors import ApiUnreachable
from trainer.cluster.lease import DURATION_S, Lease, LeaseHeld

NAME = "plaudit-policy-trainer"


@pytest.fixture
def lease(cluster):
    """lease(holder) → a Lease that is given back at the end."""
    made = []

    def make(holder, lost=lambda: None):
        made.append(Lease(cluster, NAME, holder, lost))
        return made[-1]

    yield make
    for each in made:
        if each._renewing.ident is not None:
            each.release()


@pytest.fixture
def wait(clock):
    """Sleeps by the test's clock, and never wants to stop."""
    return lambda seconds: bool(clock.sleep(seconds))


def spec(server):
    return server.objects["leases", NAME]["spec"]


def held_by(server, holder):
    """The Lease as another trainer has it."""
    return server.put(
        "leases",
        {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": NAME},
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": DURATION_S,
                "acquireTime": "2026-01-01T00:00:00.000000Z",
                "renewTime": "2026-01-01T00:00:00.000000Z",
                "leaseTransitions": 3,
            },
        },
    )


def test_the_first_one_makes_it_and_gives_it_back(server, lease, wait):
    mine = lease("pod-1_run")
    mine.acquire(60, wait)
    assert spec(server)["holderIdentity"] == "pod-1_run"
    assert spec(server)["leaseDurationSeconds"] == DURATION_S
    mine.release()
    assert spec(server)["holderIdentity"] == ""


def test_one_that_was_given_back_is_taken_at_once(server, lease, wait, clock):
    held_by(server, "")
    lease("me").acquire(60, wait)
    assert (spec(server)["holderIdentity"], spec(server)["leaseTransitions"]) == ("me", 4)
    assert clock.slept == []


def test_one_of_another_is_waited_for_and_named(server, lease, clock, wait):
    held_by(server, "pod-9_other")
    clock.steps.extend([lambda: renewed(server)] * 100)
    with pytest.raises(
        LeaseHeld, match=r"another trainer, pod-9_other, has held the Lease plaudit/.* since 2026-01-01T00"
    ):
        lease("me").acquire(60, wait)
    assert clock.now == pytest.approx(1060, abs=lease_module.LOOK_S)
    assert spec(server)["holderIdentity"] == "pod-9_other"


def renewed(server):
    found = copy.deepcopy(server.objects["leases", NAME])
    found["spec"]["renewTime"] = f"2026-01-01T00:00:{len(server.changes) % 60:02}.000000Z"
    server.put("leases", found)


def test_one_that_nobody_renews_is_taken_after_its_duration(server, lease, clock, wait):
    held_by(server, "killed")
    lease("me").acquire(600, wait)
    assert spec(server)["holderIdentity"] == "me"
    assert DURATION_S < clock.now - 1000 <= DURATION_S + 2 * lease_module.LOOK_S


@pytest.mark.parametrize("year", [2025, 2027])
def test_the_holders_clock_doesnt_matter(server, lease, clock, wait, year):
    """What stands in the Lease is for people; who waits counts by a clock that nobody sets."""
    held_by(server, "killed")["spec"]["renewTime"] = f"{year}-01-01T00:00:00.000000Z"
    lease("me").acquire(600, wait)
    assert DURATION_S < clock.now - 1000 <= DURATION_S + 2 * lease_module.LOOK_S


def test_one_whose_clock_was_set_back_keeps_it_while_it_renews(server, lease, clock, wait):
    def renew():
        renewed(server)
        server.objects["leases", NAME]["spec"]["renewTime"] = (
            f"2026-01-01T{9 - len(clock.steps) % 9:02}:00:00Z"
        )

    held_by(server, "other")
    clock.steps.extend([renew] * 60)
    with pytest.raises(LeaseHeld):
        lease("me").acquire(3 * DURATION_S, wait)


def test_the_wait_ends_when_the_holder_gives_it_back(server, lease, clock, wait):
    held_by(server, "other")
    clock.steps.extend([lambda: None, lambda: held_by(server, "")])
    lease("me").acquire(600, wait)
    assert spec(server)["holderIdentity"] == "me"
    assert clock.now - 1000 == 2 * lease_module.LOOK_S


def test_a_wish_to_stop_ends_the_wait(server, lease):
    held_by(server, "other")
    with pytest.raises(LeaseHeld):
        lease("me").acquire(600, lambda seconds: True)


def test_of_two_who_come_at_once_one_gets_it(server, lease, clock):
    """The one whose write comes second is told by the resource version, looks again, and waits."""
    held_by(server, "")
    first, second = lease("first"), lease("second")
    read = second._read

    def read_then_be_late():
        found = copy.deepcopy(read())
        second._read = read
        first.acquire(0, lambda seconds: True)
        return found

    second._read = read_then_be_late
    with pytest.raises(LeaseHeld, match="first"):
        second.acquire(0, lambda seconds: True)
    assert spec(server)["holderIdentity"] == "first"


def test_of_two_who_create_it_at_once_one_gets_it(server, lease):
    first, second = lease("first"), lease("second")
    read = second._read

    def nothing_yet():
        second._read = read
        first.acquire(0, lambda seconds: True)

    second._read = nothing_yet
    with pytest.raises(LeaseHeld, match="first"):
        second.acquire(0, lambda seconds: True)


def test_it_is_renewed(server, lease, wait, monkeypatch):
    monkeypatch.setattr(lease_module, "RENEW_S", 0.01)
    renewals = threading.Event()
    mine = lease("me")
    mine.acquire(60, wait)
    acquired = spec(server)["acquireTime"]
    server.replace = counted(server.replace, 3, renewals)
    assert renewals.wait(30)
    mine.release()
    assert spec(server)["acquireTime"] != acquired  # of nobody now
    assert spec(server)["leaseTransitions"] == 2


def counted(act, times, event):
    left = [times]

    def acting(*arguments):
        left[0] -= 1
        if left[0] == 0:
            event.set()
        return act(*arguments)

    return acting


def test_who_loses_it_is_told_and_leaves_it_alone(server, lease, wait, monkeypatch):
    monkeypatch.setattr(lease_module, "RENEW_S", 0.01)
    lost = threading.Event()
    mine = lease("me", lost.set)
    mine.acquire(60, wait)
    held_by(server, "thief")
    assert lost.wait(30)
    mine.release()
    assert spec(server)["holderIdentity"] == "thief"


def test_an_api_server_that_is_away_takes_nothing_from_the_holder(server, lease, wait, monkeypatch, caplog):
    monkeypatch.setattr(lease_module, "RENEW_S", 0.01)
    lost, back = threading.Event(), threading.Event()
    mine = lease("me", lost.set)
    mine.acquire(60, wait)
    server.fail("get", "leases", Refusal(503, "etcd has no leader"), times=12)
    server.replace = counted(server.replace, 1, back)
    assert back.wait(30)
    assert not lost.is_set()
    assert "could not be renewed" in caplog.text and "etcd has no leader" in caplog.text


def test_one_that_cannot_be_given_back_expires(server, lease, wait, caplog):
    mine = lease("me")
    mine.acquire(60, wait)
    server.fail("get", "leases", Refusal(503, "away"), times=6)
    mine.release()
    assert spec(server)["holderIdentity"] == "me"
    assert "it expires" in caplog.text


def test_nobody_there_at_the_start_is_an_error(server, lease, wait):
    server.fail("get", "leases", Refusal(503, "away"), times=6)
    with pytest.raises(ApiUnreachable, match="away"):
        lease("me").acquire(60, wait)


def test_a_write_that_cannot_be_had_now_is_sent_once_and_is_no_refusal(server, lease, wait):
    server.fail("create", "leases", Refusal(503, "etcd has no leader"))
    with pytest.raises(ApiUnreachable, match="etcd has no leader"):
        lease("me").acquire(60, wait)
    assert [each.verb for each in server.asked] == ["get", "create"]


def test_it_asks_for_what_the_role_allows(server, lease, wait):
    mine = lease("me")
    mine.acquire(60, wait)
    mine.release()
    group = "coordination.k8s.io"
    assert set(server.asked) == {Asked(verb, group, "leases") for verb in ("get", "create", "update")}
