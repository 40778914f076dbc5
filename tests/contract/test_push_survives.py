"""Pushes over lines that are cut, to servers that end, from two sides at once: a whole step serves."""

import threading

import pytest
from chaos_proxy import ChaosProxy
from policy_fleet import PolicyServer
from push_steps import Eventful, Step

from plaudit import (
    AsyncWeightsClient,
    FailedPrecondition,
    NotFound,
    PlauditError,
    PolicyClient,
    Unreachable,
    WeightsClient,
)
from plaudit.clients import upload

CHUNK = 10_000


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(upload, "CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(upload, "FIRST_PAUSE", 0.01)


@pytest.fixture
def server(tiny_policy):
    server = PolicyServer(tiny_policy).start()
    yield server
    server.stop()


@pytest.fixture
def proxy(server):
    with ChaosProxy(server.address) as proxy:
        yield proxy


@pytest.fixture
def cut_off(proxy, connect):
    """A client whose connection the proxy cuts; it has one already."""
    client = connect(WeightsClient, AsyncWeightsClient, proxy.address)
    with pytest.raises(NotFound):
        client.get_push("none")
    return client


@pytest.fixture(scope="module")
def step(tiny_policy):
    return Step(tiny_policy)


def served(server):
    model = server.model()
    return model.run_id, model.step, model.weights_sha256


# --- cut ---


def test_cut_at_every_chunk(server, proxy, cut_off, step):
    pieces = Eventful(step.pieces(CHUNK), lambda number: proxy.cut())
    assert cut_off.push(step.manifest(), pieces).step == 1
    assert proxy.cuts == len(pieces.pieces) + 1 > 10
    assert served(server) == ("run", 1, step.sha256)


def test_cut_within_chunks_and_pieces(server, proxy, cut_off, step):
    pieces = Eventful(step.pieces(7_777), lambda number: number % 5 == 3 and proxy.cut())
    assert cut_off.push(step.manifest(), pieces).step == 1
    assert proxy.cuts >= 3
    assert served(server) == ("run", 1, step.sha256)


def test_answers_that_are_lost(server, proxy, cut_off, step):
    """Of BeginPush, CommitPush and AbortPush: each is sent again, and answered as the first time."""
    manifest = step.manifest()
    proxy.swallows_answers = True
    push_id = cut_off.stage(manifest, step.pieces(CHUNK))
    proxy.swallows_answers = True
    assert cut_off.commit(push_id).step == 1
    second = cut_off.stage(step.manifest(base_step=1, new_step=2), step.pieces(CHUNK))
    proxy.swallows_answers = True
    assert cut_off.abort(second).step == 1
    assert proxy.cuts == 3
    assert served(server) == ("run", 1, step.sha256)


def test_nobody_there_any_more(server, cut_off, proxy, step):
    """Cut for good: the error says so within the time, and the old weights serve."""
    old = served(server)

    def end(number):
        if number == 3:
            proxy.__exit__()

    with pytest.raises(Unreachable, match="weights at"):
        cut_off.push(step.manifest(), Eventful(step.pieces(CHUNK), end), timeout=1)
    assert served(server) == old


# --- damaged, and repeated ---


def test_damaged_on_the_way(server, step):
    """Found by the digest, whole: the push is begun again, and then it serves."""
    old = served(server)
    damaged = bytearray(step.data)
    damaged[12_345] ^= 1
    with WeightsClient(server.address) as client:
        with pytest.raises(PlauditError, match=rf"not {step.sha256} as announced"):
            client.push(step.manifest(), [damaged])
        assert served(server) == old
        assert client.push(step.manifest(), [step.data]).step == 1


def test_a_push_that_is_repeated_is_refused_and_changes_nothing(server, step):
    with WeightsClient(server.address) as client:
        client.push(step.manifest(), [step.data])
        with pytest.raises(FailedPrecondition, match="step 1 is loaded; the push builds on step 0"):
            client.push(step.manifest(), [step.data])
    assert served(server) == ("run", 1, step.sha256)


# --- a server that ends ---


def test_a_server_that_was_restarted_between_begin_and_commit(server, step):
    """It knows nothing of the push, and serves what is on disk, until it gets the push anew."""
    old = served(server)
    with WeightsClient(server.address, timeout=10, wait_for_ready=True) as client:
        push_id = client.stage(step.manifest(), [step.data])
        server.stop()
        server.start()
        with pytest.raises(NotFound):
            client.commit(push_id)
        assert served(server) == old
        assert client.push(step.manifest(), [step.data]).step == 1


def test_a_server_that_is_restarted_while_the_chunks_come(server, proxy, step):
    def restart(number):
        if number == 4:
            proxy.cut()  # else it would wait for the stream to end
            server.stop()
            server.start()

    with WeightsClient(proxy.address, timeout=10) as client:
        with pytest.raises(NotFound, match="GetPush: no push"):
            client.push(step.manifest(), Eventful(step.pieces(CHUNK), restart))
        assert client.push(step.manifest(), [step.data]).step == 1
    assert served(server) == ("run", 1, step.sha256)


# --- two sides at once ---


def at_once(*acts):
    """What each returned or failed with; they begin together."""
    gate, outcomes = threading.Barrier(len(acts)), {}

    def run(number, act):
        gate.wait(10)
        try:
            outcomes[number] = act()
        except PlauditError as error:
            outcomes[number] = error

    threads = [threading.Thread(target=run, args=each) for each in enumerate(acts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return [outcomes[number] for number in range(len(acts))]


@pytest.mark.parametrize("take_over", [False, True])
def test_two_runs_at_once(server, tiny_policy, step, take_over):
    other = Step(tiny_policy, 0.2)
    whole = {"run": ("run", 1, step.sha256), "other": ("other", 1, other.sha256)}
    with WeightsClient(server.address) as first, WeightsClient(server.address) as second:
        outcomes = at_once(
            lambda: first.push(step.manifest(), step.pieces(CHUNK)),
            lambda: second.push(other.manifest(run_id="other"), other.pieces(CHUNK), take_over=take_over),
        )
    winners = [each for each in outcomes if not isinstance(each, PlauditError)]
    losers = [each for each in outcomes if isinstance(each, PlauditError)]
    assert winners, losers
    assert served(server) == whole[winners[-1].run_id]
    assert all("drives this policy" in str(each) or "step 1 is loaded" in str(each) for each in losers)


def test_the_same_push_from_two_sides(server, step):
    """A trainer that was taken for dead and its double: what comes in is one whole step all the same."""
    old = served(server)
    with WeightsClient(server.address) as first, WeightsClient(server.address) as second:
        at_once(
            lambda: first.push(step.manifest(), step.pieces(CHUNK)),
            lambda: second.push(step.manifest(), step.pieces(CHUNK)),
        )
        assert served(server) in (old, ("run", 1, step.sha256))


def test_an_abort_in_mid_commit(server, step):
    old = served(server)
    with WeightsClient(server.address) as first, WeightsClient(server.address) as second:
        push_id = first.stage(step.manifest(), [step.data])
        committed, aborted = at_once(lambda: first.commit(push_id), lambda: second.abort(push_id))
    assert isinstance(committed, PlauditError) != isinstance(aborted, PlauditError)
    assert served(server) == (old if isinstance(committed, PlauditError) else ("run", 1, step.sha256))


# --- watching ---


def test_watching_over_pushes_and_restarts(server, proxy, step, monkeypatch):
    monkeypatch.setattr("plaudit.clients.weights.PAUSE_SECONDS", 0.01)
    with (
        WeightsClient(proxy.address, wait_for_ready=True) as watcher,
        WeightsClient(server.address) as client,
    ):
        versions = watcher.watch_version()
        assert next(versions).step == 0
        client.push(step.manifest(), [step.data])
        assert next(versions).weights_sha256 == step.sha256
        proxy.cut()  # what was told already is not told again
        client.push(step.manifest(base_step=1, new_step=2), [step.data])
        assert next(versions).step == 2
        server.stop()
        server.start()
        assert next(versions).step == 0
        versions.close()


async def test_watching_awaited(server, step):
    async with AsyncWeightsClient(server.address) as client:
        versions = client.watch_version()
        assert (await anext(versions)).step == 0
        await client.push(step.manifest(), [step.data])
        assert (await anext(versions)).weights_sha256 == step.sha256
        await versions.aclose()


def test_a_server_that_stays_away_ends_the_watching(server, monkeypatch):
    monkeypatch.setattr("plaudit.clients.weights.PAUSE_SECONDS", 0.01)
    with WeightsClient(server.address) as client, PolicyClient(server.address):
        versions = client.watch_version(patience=0.05)
        next(versions)
        server.stop()
        with pytest.raises(PlauditError):
            next(versions)
