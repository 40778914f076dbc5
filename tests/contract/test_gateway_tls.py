"""The gateway's port by TLS: whom it lets in, certificates that change, and the ports beside it."""

import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest
from certificates import SPIFFE, Pems, security, serial
from gateway_server import gateway_in_background, options, wait_until
from guarded_servers import certificate_entry, entry, served, write_tokens

from services.gateway.server import Gateway
from services.reward.service import reward_service
from services.rpc import reloading
from services.rpc.options import OptionError, Security, ServerOptions, parse_address
from services.rpc.tls import TlsFiles, open_context

NOWHERE = "127.0.0.1:1"
SCORE = {"items": [{"prompt": "the film is", "response": " good"}]}
ANY_PORT = "127.0.0.1:0"


def gateway_of(reward, of, **more):
    return gateway_in_background(reward, gateway_options=ServerOptions(security=of, **more))


def client(gateway, pems, shown=None):
    """By TLS; `shown` are the caller's own certificate and key."""
    context = ssl.create_default_context(cafile=pems.ca_file)
    if shown:
        context.load_cert_chain(*shown)
    return httpx.Client(base_url=f"https://{gateway.address}", verify=context, timeout=10)


def code(gateway, pems, shown=None, path="/healthz", **how):
    with client(gateway, pems, shown) as http:
        return http.get(path, **how).status_code


@pytest.fixture(scope="module")
def gateway(pems):
    with gateway_of(NOWHERE, security(pems), health_address=ANY_PORT, metrics_address=ANY_PORT) as running:
        yield running


def test_a_certificate_of_the_ca_is_trusted_and_no_other(gateway, pems, stranger):
    assert code(gateway, pems) == 200
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        code(gateway, stranger)


def test_plaintext_has_no_answer(gateway):
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://{gateway.address}/healthz")


def test_beyond_loopback_it_is_tls_or_asked_for_by_name(pems):
    with pytest.raises(OptionError, match="give --tls-cert and --tls-key, or add --insecure"):
        Gateway([NOWHERE], ServerOptions("0.0.0.0:0"))
    ServerOptions("0.0.0.0:0", "0.0.0.0:0", security=security(pems)).check()


def test_the_gateways_own_token_leaves_the_machine_in_plaintext_only_where_that_is_asked_for(tmp_path):
    far, file = ["reward.example.org:50052"], write_tokens(tmp_path / "tokens.toml")
    asking = ServerOptions(token="own", security=Security(tokens=file))
    with pytest.raises(OptionError, match=r"--reward: token: would go to reward\.example"):
        Gateway(far, asking)
    Gateway(far, replace(asking, insecure=True))


def test_callers_tokens_leave_the_machine_in_plaintext_only_where_that_is_asked_for(
    pems, tmp_path, monkeypatch
):
    far, passing_on = [NOWHERE, "reward.example.org:50052"], ServerOptions(token="own")
    with pytest.raises(
        OptionError, match=r"--reward: token: would go to reward\..* PLAUDIT_TLS_CA, or --insecure"
    ):
        Gateway(far, passing_on)
    Gateway(far, replace(passing_on, insecure=True))
    Gateway([NOWHERE, "localhost:50052", "[::1]:50052"], passing_on)
    file = write_tokens(tmp_path / "tokens.toml")
    Gateway(far, ServerOptions(security=Security(tokens=file)))  # which asks by itself, and has none to show
    monkeypatch.setenv("PLAUDIT_TLS_CA", str(pems.ca_file))
    Gateway(far, passing_on)


def test_files_that_are_none_are_named(tmp_path):
    for files, words in (
        (Security(tmp_path / "none.pem", tmp_path / "none.key"), "--tls-cert: .*none.pem can't be read"),
        (Security(tokens=tmp_path / "none.toml"), "--tokens .*none.toml can't be read"),
    ):
        with pytest.raises(OptionError, match=words):
            Gateway([NOWHERE], ServerOptions(security=files))


# ---- the ports beside it ----


def test_health_has_a_plaintext_port_with_nothing_else(gateway):
    where = f"http://{gateway.health_address}"
    assert httpx.get(f"{where}/healthz").json() == {"status": "alive"}
    assert httpx.get(f"{where}/readyz").status_code == 503
    for path in ("/metrics", "/docs", "/v1/models", "/v1/score", "/healthz/"):
        assert httpx.get(where + path).status_code == 404
        assert httpx.post(where + path, json=SCORE).status_code == 404


def test_metrics_have_a_port_of_their_own(gateway, pems):
    trusting = ssl.create_default_context(cafile=pems.ca_file)
    text = httpx.get(f"https://{gateway.metrics_address}/metrics", verify=trusting).text
    assert 'plaudit_security_file_good{file="tls"} 1.0' in text
    assert "http_server_active_requests" in text


# ---- callers by their certificate ----


@pytest.fixture(scope="module")
def mutual(pems, tmp_path_factory):
    tokens = write_tokens(
        tmp_path_factory.mktemp("mutual") / "tokens.toml",
        certificate_entry(SPIFFE, "admin", name="by-spiffe"),
        certificate_entry("watcher.example.org", "admin", name="by-dns"),
        certificate_entry("only-a-name", "admin", name="by-common-name"),
        certificate_entry("no-scope.example.org", "score", name="elsewhere"),
        entry("word", "score"),
    )
    both = security(pems, tls_client_ca=pems.ca_file, tokens=tokens)
    with gateway_of(NOWHERE, both, health_address=ANY_PORT) as running:
        yield running


@pytest.mark.parametrize(
    ("identities", "how", "expected"),
    [
        ([SPIFFE], {}, 200),
        (["watcher.example.org"], {}, 200),
        (["another.example.org", "watcher.example.org"], {}, 200),
        ([], {"common_name": "only-a-name"}, 200),
        (["no-scope.example.org"], {}, 403),
        (["nobody.example.org"], {}, 401),
        (["nobody.example.org"], {"common_name": "only-a-name"}, 401),
        ([SPIFFE + "/more"], {}, 401),
    ],
    ids=str,
)
def test_a_caller_is_known_by_a_name_of_its_certificate(mutual, pems, identities, how, expected):
    shown = pems.write("caller", *identities, **how)
    assert code(mutual, pems, shown, "/metrics") == expected


def test_a_token_counts_before_the_certificate(mutual, pems):
    shown = pems.write("caller", "watcher.example.org")
    for token, expected in (("word", 403), ("wrong", 401)):
        header = {"authorization": f"Bearer {token}"}
        assert code(mutual, pems, shown, "/metrics", headers=header) == expected


def test_without_a_certificate_of_the_ca_there_is_no_connection(mutual, pems, stranger):
    for shown in (None, stranger.write("spy", SPIFFE)):
        with pytest.raises(httpx.HTTPError):
            code(mutual, pems, shown)
    assert httpx.get(f"http://{mutual.health_address}/healthz").status_code == 200


# ---- rotation ----


@pytest.fixture
def changes_are_seen_at_once(monkeypatch):
    monkeypatch.setattr(reloading, "RELOAD_S", 0.005)


@pytest.mark.usefixtures("changes_are_seen_at_once")
def test_certificates_change_under_load_without_one_failed_request(pems):
    """Open connections go on, new ones are made all the time, and each sees a certificate that is whole."""
    pems.write("rotated", "127.0.0.1")
    over = threading.Event()
    with gateway_of(NOWHERE, security(pems, "rotated")) as running, ThreadPoolExecutor(3) as pool:

        def keep_asking(lasting):
            asked = 0
            with client(running, pems) as old:
                while not over.is_set():
                    assert (old.get("/healthz").status_code if lasting else code(running, pems)) == 200
                    asked += 1
            return asked

        callers = [pool.submit(keep_asking, lasting) for lasting in (True, False, False)]
        seen = {serial(running.address)}
        for _ in range(5):
            pems.write("rotated", "127.0.0.1")
            wait_until(lambda: serial(running.address) not in seen)
            seen.add(serial(running.address))
        over.set()
        assert all(caller.result(20) for caller in callers)
    assert len(seen) == 6


@pytest.mark.usefixtures("changes_are_seen_at_once")
def test_the_callers_ca_changes_too(tmp_path):
    old, new = Pems(tmp_path), Pems(tmp_path_of(tmp_path, "new"))
    old.write("server", "127.0.0.1")
    callers_ca = tmp_path / "callers.pem"
    callers_ca.write_bytes(old.ca_file.read_bytes())
    former, later = old.write("caller", "a.example.org"), new.write("caller", "a.example.org")
    with gateway_of(NOWHERE, security(old, tls_client_ca=callers_ca)) as running:
        assert code(running, old, former) == 200
        callers_ca.write_bytes(new.ca_file.read_bytes())
        wait_until(lambda: passes(running, old, later))
        assert not passes(running, old, former)


def tmp_path_of(folder, name):
    (folder / name).mkdir()
    return folder / name


def passes(*how):
    try:
        return code(*how) == 200
    except httpx.HTTPError:
        return False


@pytest.mark.usefixtures("changes_are_seen_at_once")
def test_a_certificate_that_is_none_leaves_the_one_before(pems, tmp_path):
    own = Pems(tmp_path)
    cert, _ = own.write("server", "127.0.0.1")
    how = {"metrics_address": ANY_PORT, "metrics_plaintext": True}
    with gateway_of(NOWHERE, security(own), **how) as running:

        def good():
            text = httpx.get(f"http://{running.metrics_address}/metrics").text
            return 'plaudit_security_file_good{file="tls"} 1.0' in text

        cert.write_text("no certificate")
        wait_until(lambda: not good())
        assert code(running, own) == 200
        own.write("server", "127.0.0.1")
        wait_until(good)


def test_a_context_asks_for_certificates_where_there_is_a_ca(pems):
    files = pems.folder / "server.pem", pems.folder / "server.key"
    assert open_context(TlsFiles(*files)).value.verify_mode is ssl.CERT_NONE
    assert open_context(TlsFiles(*files, pems.ca_file)).value.verify_mode is ssl.CERT_REQUIRED


def test_where_certificates_count_no_connection_goes_on_from_another(gateway, mutual, pems):
    """TLS 1.2 resumes by ids that Python's servers always give: for it a CA that is gone would stay."""

    def context(newest):
        made = ssl.create_default_context(cafile=pems.ca_file)
        made.load_cert_chain(*pems.write("caller", SPIFFE))
        made.maximum_version = newest
        return made

    old, new = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
    assert answer(gateway, context(old))[0] == 200, "who a caller is it says by a token"
    with pytest.raises((ssl.SSLError, ConnectionError)):
        answer(mutual, context(old))
    asking = context(new)
    status, session = answer(mutual, asking)
    assert (status, session) == (200, None), "there is none to go on from"


def answer(gateway, context):
    """The status of one answer, and the TLS session that a client could go on with."""
    host, number = parse_address(gateway.address)
    with context.wrap_socket(socket.create_connection((host, number), 10), server_hostname=host) as line:
        line.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        return int(line.recv(4096).split()[1]), line.session if line.session.has_ticket else None


# ---- the reward service by TLS ----


def test_the_reward_service_is_asked_by_tls_where_the_environment_says_whom_to_trust(
    pems, tiny_reward, tmp_path, monkeypatch
):
    monkeypatch.setenv("PLAUDIT_TLS_CA", str(pems.ca_file))
    tokens = write_tokens(tmp_path / "tokens.toml", entry("own", "score", name="gateway"))
    mine = write_tokens(tmp_path / "mine.toml", entry("alice", "score", name="alice"))
    with (
        served(
            lambda: reward_service(options(tiny_reward)), security=security(pems, tokens=tokens)
        ) as reward,
        gateway_of(reward.address, security(pems, tokens=mine), token="own") as running,
        client(running, pems) as http,
    ):
        assert http.get("/readyz").status_code == 200
        answer = http.post("/v1/score", json=SCORE, headers={"authorization": "Bearer alice"})
        assert answer.status_code == 200
