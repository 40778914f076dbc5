"""The metrics ports of a service, the gateway and the trainer: by TLS with the certificate of their calls."""

import contextlib
import http.client
import os
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from certificates import Pems, security, serial
from gateway_server import gateway_in_background
from guarded_servers import served, trainer_service, write_tokens
from prometheus_client import CollectorRegistry

from services.rpc import metrics_endpoint
from services.rpc.metrics_endpoint import MetricsEndpoint
from services.rpc.options import OptionError, Security, ServerOptions, join_address, parse_address
from trainer.config import RunOptions
from trainer.errors import ConfigError
from trainer.metrics import RunMetrics

ANY_PORT = "127.0.0.1:0"
NOBODY = (ssl.SSLError, ConnectionError, http.client.HTTPException)
"""How a handshake fails: before the request or, by TLS 1.3, when the answer is read."""


@contextlib.contextmanager
def service(of, folder, **more):
    with served(trainer_service, security=of, metrics_address=ANY_PORT, **more) as running:
        yield running.metrics_address


@contextlib.contextmanager
def gateway(of, folder, **more):
    options = ServerOptions(security=of, metrics_address=ANY_PORT, **more)
    with gateway_in_background("127.0.0.1:1", gateway_options=options) as running:
        yield running.metrics_address


@contextlib.contextmanager
def trainer(of, folder, **more):
    told = RunOptions(
        metrics_address=ANY_PORT,
        tls_cert=of.tls_cert,
        tls_key=of.tls_key,
        tls_client_ca=of.tls_client_ca,
        **more,
    )
    with RunMetrics("sft", folder) as metrics:
        yield metrics.serve(told)


@pytest.fixture(params=[service, gateway, trainer], ids=lambda kind: kind.__name__)
def port(request, tmp_path):
    """port(security, …) → the address of a metrics port while the block lasts."""
    return lambda of, **more: request.param(of, tmp_path / "run", **more)


def scrape(address, pems=None, shown=None):
    """The text that Prometheus gets; plaintext without `pems`. `shown` are its own certificate and key."""
    host, number = parse_address(address)
    if pems is None:
        connection = http.client.HTTPConnection(host, number, timeout=10)
    else:
        context = ssl.create_default_context(cafile=pems.ca_file)
        if shown:
            context.load_cert_chain(*shown)
        connection = http.client.HTTPSConnection(host, number, timeout=10, context=context)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.read().decode()


def is_scraped(*how):
    try:
        return "plaudit_build_info" in scrape(*how)
    except NOBODY:
        return False


# ---- who is answered ----


def test_who_trusts_the_ca_is_answered_and_plaintext_is_not(port, pems, stranger):
    with port(security(pems)) as address:
        text = scrape(address, pems)
        assert "plaudit_build_info" in text and "process_resident_memory_bytes" in text
        with pytest.raises(NOBODY):
            scrape(address)
        with pytest.raises(ssl.SSLCertVerificationError):
            scrape(address, stranger)
        assert is_scraped(address, pems)


def test_where_callers_need_a_certificate_a_scraper_does(port, pems, stranger):
    with port(security(pems, tls_client_ca=pems.ca_file)) as address:
        assert not is_scraped(address, pems)
        assert not is_scraped(address, pems, stranger.write("prometheus", "prometheus"))
        assert not is_scraped(address)
        assert is_scraped(address, pems, pems.write("prometheus", "prometheus"))


def test_plaintext_is_there_where_it_is_asked_for(port, pems):
    with port(security(pems, tls_client_ca=pems.ca_file), metrics_plaintext=True) as address:
        assert is_scraped(address)
        assert not is_scraped(address, pems)


def test_without_tls_it_is_plaintext(port):
    with port(Security()) as address:
        assert is_scraped(address)


@pytest.mark.parametrize("kind", [service, gateway])
def test_no_token_is_asked_for(kind, pems, tmp_path):
    with kind(security(pems, tokens=write_tokens(tmp_path / "tokens.toml")), tmp_path) as address:
        assert is_scraped(address, pems)


def test_who_hangs_up_leaves_no_stack_behind(port, pems, capfd):
    with port(security(pems)) as address:
        for _ in range(5):
            context = ssl.create_default_context(cafile=pems.ca_file)
            host, number = parse_address(address)
            with context.wrap_socket(socket.create_connection((host, number)), server_hostname=host) as line:
                line.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert is_scraped(address, pems)
    assert "Traceback" not in capfd.readouterr().err


# ---- files that change ----


def test_the_next_scrape_sees_a_renewed_certificate(port, pems):
    pems.write("renewed", "127.0.0.1")
    with port(security(pems, "renewed")) as address:
        seen = {serial(address)}
        for _ in range(3):
            pems.write("renewed", "127.0.0.1")
            assert is_scraped(address, pems)
            seen.add(serial(address))
        assert len(seen) == 4


def test_a_directory_holds_them_as_well(pems, tmp_path):
    folder = tmp_path / "tls"
    folder.mkdir()

    def fill():
        for path, name in zip(pems.write("filled", "127.0.0.1"), ("tls.crt", "tls.key"), strict=True):
            (folder / name).write_bytes(path.read_bytes())

    fill()
    with trainer(Security(folder), tmp_path) as address:
        before = serial(address)
        fill()
        assert is_scraped(address, pems) and serial(address) != before


def test_the_next_scrape_sees_another_ca_of_the_scrapers(pems, stranger, tmp_path):
    ca = tmp_path / "scrapers.pem"
    ca.write_bytes(pems.ca_file.read_bytes())
    former, later = pems.write("scraper", "prometheus"), stranger.write("scraper", "prometheus")
    with trainer(security(pems, tls_client_ca=ca), tmp_path) as address:
        assert is_scraped(address, pems, former) and not is_scraped(address, pems, later)
        ca.write_bytes(stranger.ca_file.read_bytes())
        assert is_scraped(address, pems, later) and not is_scraped(address, pems, former)


@pytest.mark.parametrize("damage", ["text", "another key", "gone"])
def test_files_that_fit_nothing_leave_the_ones_before(tmp_path, damage):
    own = Pems(tmp_path)
    cert, key = own.write("server", "127.0.0.1")
    with trainer(security(own), tmp_path) as address:
        before = serial(address)
        if damage == "text":
            cert.write_text("no certificate")
        elif damage == "gone":
            key.unlink()
        else:
            key.write_bytes(own.write("another", "127.0.0.1")[1].read_bytes())
        assert is_scraped(address, own) and serial(address) == before
        own.write("server", "127.0.0.1")
        assert is_scraped(address, own) and serial(address) != before


def test_they_change_while_scrapes_go_on(pems):
    """None fails, and each sees a certificate that is whole."""
    pems.write("rotated", "127.0.0.1")
    over = threading.Event()

    def keep_scraping():
        count = 0
        while not over.is_set():
            assert is_scraped(address, pems)
            count += 1
        return count

    with served(trainer_service, security=security(pems, "rotated"), metrics_address=ANY_PORT) as running:
        address = running.metrics_address
        with ThreadPoolExecutor(2) as pool:
            scrapers = [pool.submit(keep_scraping) for _ in range(2)]
            for _ in range(5):
                before = serial(address)
                pems.write("rotated", "127.0.0.1")
                assert serial(address) != before
            over.set()
            assert all(scraper.result(20) for scraper in scrapers)


# ---- callers that are silent, wrong or gone ----


@pytest.fixture
def endpoint(pems):
    bare = MetricsEndpoint("127.0.0.1", 0, CollectorRegistry(), security(pems))
    yield join_address("127.0.0.1", bare.port)
    bare.close()


def test_who_is_silent_in_the_handshake_holds_up_nobody(endpoint, pems):
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection(parse_address(endpoint)))
        assert scrape(endpoint, pems) == ""


@pytest.mark.parametrize("is_secure", [True, False], ids=["tls", "plaintext"])
def test_who_stays_silent_is_cut_off(pems, monkeypatch, is_secure, capfd):
    monkeypatch.setattr(metrics_endpoint._Handler, "timeout", 0.01)
    of = security(pems) if is_secure else Security()
    bare = MetricsEndpoint("127.0.0.1", 0, CollectorRegistry(), of)
    try:
        with socket.create_connection(("127.0.0.1", bare.port), timeout=10) as silent:
            assert silent.recv(1) == b""
    finally:
        bare.close()
    assert capfd.readouterr().err == ""


def test_what_is_no_handshake_is_no_line_on_standard_error(endpoint, pems, capfd):
    for sent in (b"GET /metrics HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff", os.urandom(64), b""):
        where = parse_address(endpoint)
        with socket.create_connection(where, timeout=10) as wrong, contextlib.suppress(ConnectionError):
            wrong.sendall(sent)
            with contextlib.suppress(OSError):  # it may have hung up by now
                wrong.shutdown(socket.SHUT_WR)
            while wrong.recv(1024):
                pass
    assert scrape(endpoint, pems) == ""
    assert capfd.readouterr().err == ""


def test_a_closed_port_is_free_again(pems):
    first = MetricsEndpoint("127.0.0.1", 0, CollectorRegistry(), security(pems))
    with pytest.raises(OSError, match="in use"):
        MetricsEndpoint("127.0.0.1", first.port, CollectorRegistry(), security(pems))
    first.close()
    MetricsEndpoint("127.0.0.1", first.port, CollectorRegistry(), security(pems)).close()


# ---- options ----


def test_beyond_loopback_it_is_tls_or_plaintext_by_name(pems):
    everywhere = "0.0.0.0:0"
    ServerOptions(everywhere, everywhere, security=security(pems)).check()
    ServerOptions(everywhere, everywhere, security=security(pems), metrics_plaintext=True).check()
    with pytest.raises(OptionError, match=r"--metrics-address 0\.0\.0\.0:0 can be reached"):
        ServerOptions(metrics_address=everywhere, metrics_plaintext=True).check()


def test_the_trainers_beyond_loopback_too(pems, tmp_path):
    tls = {"tls_cert": pems.folder / "server.pem", "tls_key": pems.folder / "server.key"}
    with RunMetrics("sft", tmp_path) as metrics:
        assert metrics.serve(RunOptions(metrics_address="0.0.0.0:0", **tls)).startswith("0.0.0.0:")
        with pytest.raises(ConfigError, match=r"--metrics-address 0\.0\.0\.0:0 can be .* add --insecure"):
            metrics.serve(RunOptions(metrics_address="0.0.0.0:0", metrics_plaintext=True))


@pytest.mark.parametrize(
    ("tls", "words"),
    [
        ({"tls_cert": Path("none.pem")}, "--tls-key is missing"),
        ({"tls_client_ca": Path("ca.pem")}, "--tls-client-ca needs --tls-cert"),
        ({"tls_cert": Path("none.pem"), "tls_key": Path("none.key")}, "none.pem can't be read"),
    ],
)
def test_files_of_the_trainer_that_are_none_are_named(tmp_path, tls, words):
    with RunMetrics("sft", tmp_path) as metrics, pytest.raises(ConfigError, match=words):
        metrics.serve(RunOptions(metrics_address=ANY_PORT, **tls))
