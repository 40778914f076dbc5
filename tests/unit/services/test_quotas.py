"""Quotas and failures: buckets by a clock of the tests' own."""

import pytest

from services.errors import Overloaded, QuotaExceeded, TooLate
from services.rpc import failures, quotas
from services.rpc.failures import Failures
from services.rpc.metrics import ServerMetrics
from services.rpc.quotas import Bucket, Quotas, Use
from services.rpc.tokens import Identity, Quota


@pytest.fixture
def metrics():
    return ServerMetrics()


@pytest.fixture
def use_of(clock, metrics):
    """Makes the call that is served one of a caller with this quota; returns its use."""
    tokens = []

    def begin(quota):
        use = Use(quota, metrics, clock)
        tokens.append(quotas._use.set(use))
        return use

    yield begin
    for token in tokens:
        quotas._use.reset(token)


def refused(metrics, reason):
    return metrics.registry.get_sample_value("plaudit_calls_refused_total", {"reason": reason})


# ---- buckets ----


def test_a_bucket_gives_its_burst_and_then_its_rate(clock):
    bucket = Bucket(4, clock)
    for _ in range(4):
        assert bucket.wait(1) == 0
        bucket.take(1)
    assert bucket.wait(1) == 0.25
    clock.now += 0.25
    assert bucket.wait(1) == 0


def test_a_long_pause_fills_a_bucket_no_more_than_full(clock):
    bucket = Bucket(4, clock)
    clock.now += 3600
    assert bucket.wait(4) == 0
    bucket.take(4)
    assert bucket.wait(1) == 0.25


def test_what_is_larger_than_the_bucket_waits_for_a_full_one_and_is_paid_for_later(clock):
    bucket = Bucket(100, clock)
    assert bucket.wait(250) == 0
    bucket.take(250)
    assert bucket.wait(0) == 1.5
    assert bucket.wait(250) == 2.5
    clock.now += 2.5
    assert bucket.wait(250) == 0


def test_a_slow_rate_still_gives_one_at_a_time(clock):
    bucket = Bucket(0.1, clock)
    assert bucket.wait(1) == 0
    bucket.take(1)
    assert bucket.wait(1) == pytest.approx(10)


@pytest.mark.parametrize("rate", [0.3, 1, 7, 100])
def test_over_a_long_time_the_rate_holds(clock, rate):
    bucket, taken = Bucket(rate, clock), 0
    end = clock.now + 1000 / rate
    while clock.now < end:
        if wait := bucket.wait(1):
            clock.now += wait
        else:
            bucket.take(1)
            taken += 1
    assert taken == pytest.approx(1000 + max(1, rate), rel=0.01)


# ---- a caller's use ----


def test_requests_beyond_the_quota_say_when_to_come_back(clock, metrics):
    use = Use(Quota(requests_per_second=2), metrics, clock)
    use.begin()
    use.begin()
    with pytest.raises(QuotaExceeded, match=r"quota of 2 requests a second .* come back in 0.50 s") as caught:
        use.begin()
    assert caught.value.retry_after == 0.5
    assert isinstance(caught.value, Overloaded)
    clock.now += 0.5
    use.begin()
    assert refused(metrics, "requests") == 1


def test_calls_in_flight_are_counted_in_and_out(clock, metrics):
    use = Use(Quota(in_flight=2), metrics, clock)
    use.begin()
    use.begin()
    with pytest.raises(QuotaExceeded, match="2 calls in flight"):
        use.begin()
    use.end()
    use.begin()
    assert refused(metrics, "in_flight") == 1


def test_tokens_are_charged_when_they_are_known(clock, metrics):
    use = Use(Quota(tokens_per_second=100), metrics, clock)
    use.begin()
    use.charge(80)
    with pytest.raises(QuotaExceeded, match="100 tokens a second") as caught:
        use.charge(60)
    assert caught.value.retry_after == pytest.approx(0.4)
    use.charge(20)
    assert refused(metrics, "tokens") == 1


def test_a_caller_in_debt_is_turned_away_before_its_call_is_read(clock, metrics):
    use = Use(Quota(requests_per_second=10, tokens_per_second=100), metrics, clock)
    use.begin()
    use.charge(1000)
    with pytest.raises(QuotaExceeded, match="tokens a second") as caught:
        use.begin()
    assert caught.value.retry_after == pytest.approx(9)
    clock.now += 9.001
    use.begin()


def test_what_is_refused_costs_no_request(clock, metrics):
    use = Use(Quota(requests_per_second=1, in_flight=1), metrics, clock)
    use.begin()
    clock.now += 1
    for _ in range(5):
        with pytest.raises(QuotaExceeded, match="in flight"):
            use.begin()
    use.end()
    use.begin()


def test_new_numbers_hold_at_once_and_calls_in_flight_still_count(clock, metrics):
    use = Use(Quota(in_flight=5), metrics, clock)
    use.begin()
    use.renew(Quota(in_flight=1))
    with pytest.raises(QuotaExceeded):
        use.begin()
    use.end()
    use.begin()


def test_a_call_that_the_queue_turns_away_gets_its_tokens_back(clock, metrics, use_of):
    """And any other that fails doesn't: something has been done for it."""
    use = use_of(Quota(tokens_per_second=100))
    with pytest.raises(Overloaded), quotas.charged(100):
        raise Overloaded("full")
    with pytest.raises(TooLate), quotas.charged(60):
        raise TooLate("its deadline has passed")
    with quotas.charged(40):
        pass
    with pytest.raises(QuotaExceeded), quotas.charged(1):
        pytest.fail("not begun")
    clock.now += 1
    use.charge(100)


# ---- callers ----


def caller(name, **quota):
    return Identity(name, frozenset({"score"}), quota=Quota(**quota))


def test_each_caller_has_a_use_of_its_own_by_name(clock, metrics):
    every = Quotas(metrics, clock)
    alice = every._of(caller("alice", in_flight=1))
    assert every._of(caller("alice", in_flight=1)) is alice
    assert every._of(caller("bob", in_flight=1)) is not alice
    assert every._of(caller("alice", in_flight=2)) is alice
    assert alice.quota.in_flight == 2


def test_callers_are_remembered_in_bounded_memory(clock, metrics, monkeypatch):
    monkeypatch.setattr(quotas, "MOST_CALLERS", 3)
    every = Quotas(metrics, clock)
    first = every._of(caller("0", in_flight=1))
    for number in range(5):
        every._of(caller(str(number), in_flight=1))
        if number < 3:
            assert every._of(caller("0", in_flight=1)) is first
    assert len(every._uses) == 3


# ---- failures by peer ----


def test_a_peer_may_fail_often_and_then_slowly(clock):
    failed = Failures(clock)
    for _ in range(failures.BURST):
        assert failed.wait("ipv4:10.0.0.1") == 0
        failed.count("ipv4:10.0.0.1")
    assert failed.wait("ipv4:10.0.0.1") == pytest.approx(1 / failures.PER_SECOND)
    assert failed.wait("ipv4:10.0.0.2") == 0
    clock.now += 1 / failures.PER_SECOND
    assert failed.wait("ipv4:10.0.0.1") == 0


@pytest.mark.parametrize("form", ["ipv6:%5B{}%5D", "ipv6:[{}]", "{}"], ids=["grpc", "brackets", "http"])
def test_the_addresses_of_one_network_fail_together(clock, form):
    failed = Failures(clock)
    for number in range(failures.BURST):
        failed.count(form.format(f"2001:db8:0:7::{number:x}"))
    assert failed.wait(form.format("2001:db8:0:7:ffff::1")) > 0
    assert failed.wait(form.format("2001:db8:0:8::1")) == 0
    assert len(failed._peers) == 1


@pytest.mark.parametrize(
    ("peer", "counted"),
    [
        ("ipv4:10.0.0.1", "ipv4:10.0.0.1"),
        ("10.0.0.1", "10.0.0.1"),
        ("ipv6:%5B::ffff:10.0.0.1%5D", "ipv6:%5B::ffff:10.0.0.1%5D"),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.1"),
        ("ipv6:%5Bfe80::1%25eth0%5D", "fe80::/64"),
        ("ipv6:%5B::1%5D", "::/64"),
        ("unix", "unix"),
        ("unknown", "unknown"),
        ("", ""),
    ],
)
def test_whose_failures_count_as_one(peer, counted):
    assert failures.network(peer) == counted


def test_failures_while_nobody_listens_make_it_no_worse(clock):
    failed = Failures(clock)
    for _ in range(10 * failures.BURST):
        failed.count("peer")
    assert failed.wait("peer") == pytest.approx(1 / failures.PER_SECOND)


def test_peers_are_remembered_in_bounded_memory(clock, monkeypatch):
    monkeypatch.setattr(failures, "MOST_PEERS", 10)
    failed = Failures(clock)
    for number in range(1000):
        failed.count(f"ipv6:[{number:x}::1]")
    assert len(failed._peers) == 10
