"""Connections that outlive what they were made by: their age, their certificate, and its CA."""

import contextlib
import http.client
import logging
import ssl
import time
from concurrent.futures import ThreadPoolExecutor as threads
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from certificates import Pems, security
from gateway_server import gateway_in_background, held_reward, http_client, wait_until

from services.gateway import connection
from services.rpc.options import ServerOptions

NOWHERE = "127.0.0.1:1"
SCORE = {"items": [{"prompt": "the film is", "response": " good"}]}


# ---- age ----


@pytest.fixture
def gateway():
    with gateway_in_background(NOWHERE) as running:
        yield running


def test_the_answer_after_its_age_is_a_connections_last(gateway, monkeypatch):
    with http_client(gateway) as http:
        for _ in range(3):
            assert "connection" not in http.get("/healthz").headers
    monkeypatch.setattr(connection, "AGE_S", 0.2)
    host, _, port = gateway.address.rpartition(":")
    with contextlib.closing(http_connection(host, int(port))) as line:
        assert get(line) == (200, None)
        time.sleep(0.25)
        line.auto_open = 0  # the same one
        assert get(line) == (200, "close")
    wait_until(lambda: not gateway._api.server_state.connections)


def http_connection(host, port):
    return http.client.HTTPConnection(host, port, timeout=20)


def get(line, path="/healthz"):
    """Status and whether the connection ends."""
    line.request("GET", path)
    answer = line.getresponse()
    answer.read()
    return answer.status, answer.getheader("connection")


def test_what_is_asked_before_its_age_is_answered(tiny_reward, monkeypatch):
    monkeypatch.setattr(connection, "AGE_S", 0.2)
    with (
        held_reward(tiny_reward) as reward,
        gateway_in_background(reward.address) as gateway,
        http_client(gateway) as asking,
        threads() as pool,
    ):
        waiting = pool.submit(asking.post, "/v1/score", json=SCORE)
        assert reward.engine.begun.wait(10)
        time.sleep(0.25)
        reward.engine.go_on.set()
        assert waiting.result().status_code == 200
        assert waiting.result().headers["connection"] == "close"


def test_no_request_is_lost_by_it(gateway, monkeypatch):
    monkeypatch.setattr(connection, "AGE_S", 0.02)
    with http_client(gateway) as asking:
        answers = [asking.get("/healthz") for _ in range(300)]
    assert {answer.status_code for answer in answers} == {200}
    assert 2 < sum("connection" in answer.headers for answer in answers) < 300


def test_connections_made_at_once_do_not_end_at_once(gateway):
    host, _, port = gateway.address.rpartition(":")
    with contextlib.ExitStack() as opened:
        for _ in range(20):
            opened.enter_context(contextlib.closing(http_connection(host, int(port)))).connect()
        made = gateway._api.server_state.connections
        wait_until(lambda: len(made) == 20)
        left = [each.app.until - time.monotonic() for each in made]
    assert 250 < min(left) < max(left) <= 330
    assert max(left) - min(left) > 5


# ---- certificates ----


@pytest.fixture
def parties(tmp_path):
    """The server's CA, and two of callers."""
    made = []
    for name in ("own", "old", "new"):
        (tmp_path / name).mkdir()
        made.append(Pems(tmp_path / name))
    made[0].write("server", "127.0.0.1")
    return made


@contextlib.contextmanager
def mutual(own, ca_file):
    where = {"metrics_address": "127.0.0.1:0", "metrics_plaintext": True}
    options = ServerOptions(security=security(own, tls_client_ca=ca_file), **where)
    with gateway_in_background(NOWHERE, gateway_options=options) as running:
        yield running


@contextlib.contextmanager
def caller(gateway, own, shown):
    context = ssl.create_default_context(cafile=own.ca_file)
    context.load_cert_chain(*shown)
    host, _, port = gateway.address.rpartition(":")
    line = http.client.HTTPSConnection(host, int(port), timeout=20, context=context)
    with contextlib.closing(line):
        line.connect()
        line.auto_open = 0  # the same one all the time
        assert get(line) == (200, None)
        yield line


def change(gateway, path, content):
    """Returns when it is seen."""
    before = gateway._certificate.value
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.replace(path)
    wait_until(lambda: gateway._certificate.value is not before)


def was_one(gateway, reason):
    """Whether the metrics tell of one refusal."""
    text = httpx.get(f"http://{gateway.metrics_address}/metrics").text
    return f'plaudit_calls_refused_total{{reason="{reason}"}} 1.0' in text


def test_a_certificate_that_expires_opens_nothing_more(parties, caplog):
    own, old, _ = parties
    ends = datetime.now(UTC) + timedelta(seconds=2.5)
    shown = old.write("caller", "a.example.org", not_after=ends)
    lasting = old.write("lasting", "b.example.org")
    with (
        caplog.at_level(logging.WARNING, "services.rpc.access"),
        mutual(own, old.ca_file) as gateway,
        caller(gateway, own, shown) as line,
        caller(gateway, own, lasting) as other,
    ):
        time.sleep(max(0.0, ends.timestamp() - time.time()) + 0.01)
        assert get(line) == (401, "close")
        assert get(other) == (200, None)
        assert was_one(gateway, "expired")
    (record,) = caplog.records
    assert record.getMessage().startswith("GET /healthz refused to 127.0.0.1:")
    assert "has expired" in record.getMessage()


@pytest.mark.usefixtures("changes_are_seen_at_once")
def test_a_ca_that_is_removed_costs_no_request_of_a_connection_that_is_there(parties, tmp_path):
    """Which soon reaches its age: who takes a CA away for a new one has callers that are on their way."""
    own, old, new = parties
    ca = tmp_path / "callers.pem"
    ca.write_bytes(old.ca_file.read_bytes())
    shown = old.write("caller", "a.example.org")
    with mutual(own, ca) as gateway, caller(gateway, own, shown) as former:
        change(gateway, ca, new.ca_file.read_bytes())
        assert get(former) == (200, None)
        with caller(gateway, own, new.write("caller", "a.example.org")) as later:
            assert get(later) == (200, None)
        with pytest.raises(OSError), caller(gateway, own, shown):
            pytest.fail("its CA is gone")
