"""TLS: certificates that change under load, callers known by theirs, and what a wrong one is told as."""

import asyncio
import contextlib
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from certificates import SPIFFE, security, serial
from guarded_servers import (
    call,
    certificate_entry,
    entry,
    served,
    trainer_service,
    wait_until,
    write_tokens,
)

from plaudit import (
    AsyncTrainerClient,
    InvalidArgument,
    NotSecure,
    PermissionDenied,
    TrainerClient,
    Unauthenticated,
    Unreachable,
)
from plaudit.clients import channel, tls as client_tls
from services.rpc.interceptors import HEALTH
from services.rpc.options import OptionError, Security
from services.rpc.tls import TlsFiles, open_certificate

TRAINER = "plaudit.v1.TrainerService"
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def server(pems):
    with served(trainer_service, security=security(pems)) as running:
        yield running


@pytest.fixture(autouse=True)
def one_try(monkeypatch):
    """A connection that can't be is no reason to wait for the next try."""
    monkeypatch.setattr(channel, "SERVICE_CONFIG", {**channel.SERVICE_CONFIG, "methodConfig": []})


def get_run_sync(address, **how):
    with TrainerClient(address, timeout=10, **how) as trainer:
        return trainer.get_run().run_id


def get_run_async(address, **how):
    async def ask():
        async with AsyncTrainerClient(address, timeout=10, **how) as trainer:
            return (await trainer.get_run()).run_id

    return asyncio.run(ask())


@pytest.fixture(params=[get_run_sync, get_run_async], ids=["sync", "async"])
def get_run(request):
    return request.param


# ---- whom the client trusts ----


def test_a_server_of_the_ca_is_trusted(server, pems, get_run):
    assert get_run(server.address, tls_ca=pems.ca_file) == "a-run"
    assert get_run(f"localhost:{server.port}", tls_ca=str(pems.ca_file)) == "a-run"


def test_the_environment_turns_tls_on(server, pems, get_run, monkeypatch):
    monkeypatch.setenv("PLAUDIT_TLS_CA", str(pems.ca_file))
    assert get_run(server.address) == "a-run"


def refused(pems, get_run, name, *identities, ca=None, **how):
    pems.write(name, *identities, **how)
    with (
        served(trainer_service, security=security(pems, name)) as running,
        pytest.raises(NotSecure) as caught,
    ):
        get_run(running.address, tls_ca=ca or pems.ca_file)
    return str(caught.value)


def test_an_expired_certificate_is_said_to_be_expired(pems, get_run):
    past = datetime.now(UTC) - timedelta(days=2)
    words = refused(
        pems, get_run, "expired", "127.0.0.1", not_before=past, not_after=past + timedelta(days=1)
    )
    assert "the server's certificate has expired" in words


def test_a_certificate_of_another_name_is_said_to_be_that(pems, get_run):
    words = refused(pems, get_run, "elsewhere", "reward.example.org")
    assert "for another name than 127.0.0.1" in words
    assert "tls_name" in words


def test_the_name_may_be_given_where_the_address_is_another(pems, get_run):
    pems.write("pod", "plaudit-policy")
    with served(trainer_service, security=security(pems, "pod")) as running:
        assert get_run(running.address, tls_ca=pems.ca_file, tls_name="plaudit-policy") == "a-run"


def test_a_certificate_of_another_ca_is_not_trusted(pems, stranger, get_run):
    words = refused(pems, get_run, "server2", "127.0.0.1", ca=stranger.ca_file)
    assert "of no CA in tls_ca (PLAUDIT_TLS_CA)" in words


def test_a_server_that_speaks_plaintext_is_named_as_such(pems, get_run):
    with served(trainer_service) as running, pytest.raises(NotSecure, match="the server speaks plaintext"):
        get_run(running.address, tls_ca=pems.ca_file)


def test_a_plaintext_client_is_told_of_tls(server, get_run):
    with pytest.raises(Unreachable, match=r"or speak TLS: then give tls_ca \(PLAUDIT_TLS_CA\)"):
        get_run(server.address)


# ---- what a client can't use ----


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tls_cert": "c", "tls_key": "k"}, "tls_ca: is missing; say whom to trust"),
        ({"tls_ca": "ca", "tls_cert": "c"}, "tls_key: is missing; tls_cert and tls_key go together"),
        ({"tls_ca": "ca", "tls_key": "k"}, "tls_cert: is missing"),
    ],
)
def test_files_that_go_together(given, words):
    with pytest.raises(InvalidArgument, match=words):
        TrainerClient("127.0.0.1:1", **given)


def test_a_servers_certificate_in_the_environment_turns_nothing_on(monkeypatch, pems, get_run):
    monkeypatch.setenv("PLAUDIT_TLS_CERT", str(pems.folder / "server.pem"))
    monkeypatch.setenv("PLAUDIT_TLS_KEY", str(pems.folder / "server.key"))
    with served(trainer_service) as running:
        assert get_run(running.address) == "a-run"


def test_files_that_are_none_are_named(pems, get_run, tmp_path):
    with pytest.raises(InvalidArgument, match=r"tls_ca: .*none.pem can't be read: No such file"):
        get_run("127.0.0.1:1", tls_ca=tmp_path / "none.pem")
    (tmp_path / "text.pem").write_text("no certificate")
    with pytest.raises(InvalidArgument, match=r"tls_ca: .* should be certificates in PEM"):
        get_run("127.0.0.1:1", tls_ca=tmp_path / "text.pem")
    cert, _ = pems.write("one", "one")
    _, key = pems.write("other", "other")
    with pytest.raises(InvalidArgument, match=r"tls_cert: .* should be a certificate and its key"):
        get_run("127.0.0.1:1", tls_ca=pems.ca_file, tls_cert=cert, tls_key=key)


# ---- tokens stay secret ----


def test_a_token_goes_in_plaintext_only_where_that_is_asked_for(monkeypatch, pems):
    far = "reward.example.org:50052"
    for address in (far, ["127.0.0.1:1", far]):
        with pytest.raises(InvalidArgument, match=f"token: would go to {far} .* tls_ca .* insecure=True"):
            TrainerClient(address, token="secret")
    TrainerClient("127.0.0.1:1", token="secret")
    TrainerClient(far)
    TrainerClient(far, token="secret", tls_ca=pems.ca_file)
    TrainerClient(far, token="secret", insecure=True)
    monkeypatch.setenv("PLAUDIT_TOKEN", "secret")
    with pytest.raises(InvalidArgument) as caught:
        TrainerClient(far)
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("PLAUDIT_INSECURE", "1")
    TrainerClient(far)
    with pytest.raises(InvalidArgument):
        TrainerClient(far, insecure=False)


# ---- callers by their certificate ----


@pytest.fixture(scope="module")
def mutual(pems, tmp_path_factory):
    """A server that knows callers by certificate, and one by a token."""
    tokens = write_tokens(
        tmp_path_factory.mktemp("mutual") / "tokens.toml",
        certificate_entry(SPIFFE, "trainer:read", name="by-spiffe"),
        certificate_entry("watcher.example.org", "trainer:read", name="by-dns"),
        certificate_entry("only-a-name", "trainer:read", name="by-common-name"),
        certificate_entry("no-scope.example.org", "score", name="elsewhere"),
        entry("word", "trainer:control"),
    )
    pems.write("caller", SPIFFE)
    both = security(pems, tls_client_ca=pems.ca_file, tokens=tokens)
    with served(trainer_service, security=both) as running:
        yield running


def shown(pems, name, *identities, **how):
    """Options of a client that shows a certificate."""
    cert, key = pems.write(name, *identities, **how)
    return {"tls_ca": pems.ca_file, "tls_cert": cert, "tls_key": key}


@pytest.mark.parametrize(
    ("identities", "how"),
    [
        ([SPIFFE], {}),
        (["watcher.example.org"], {}),
        (["another.example.org", "watcher.example.org"], {}),
        ([], {"common_name": "only-a-name"}),
    ],
    ids=str,
)
def test_a_caller_is_known_by_a_name_of_its_certificate(mutual, pems, get_run, identities, how):
    assert get_run(mutual.address, **shown(pems, "known", *identities, **how)) == "a-run"


@pytest.mark.parametrize(
    ("identities", "how"),
    [
        (["nobody.example.org"], {}),
        (["nobody.example.org"], {"common_name": "only-a-name"}),
        ([SPIFFE + "/more"], {}),
    ],
    ids=str,
)
def test_other_certificates_of_the_ca_open_nothing(mutual, pems, get_run, identities, how):
    with pytest.raises(Unauthenticated, match=r"the certificate of .* opens nothing"):
        get_run(mutual.address, **shown(pems, "unknown", *identities, **how))


def test_a_certificate_opens_what_its_scopes_say(mutual, pems, get_run):
    with pytest.raises(PermissionDenied, match="'trainer:read'"):
        get_run(mutual.address, **shown(pems, "elsewhere", "no-scope.example.org"))


def test_a_token_counts_before_the_certificate(mutual, pems):
    files = shown(pems, "caller", SPIFFE)
    with TrainerClient(mutual.address, token="word", **files) as trainer:
        with pytest.raises(PermissionDenied):
            trainer.get_run()
        trainer.stop_run()
    with TrainerClient(mutual.address, token="wrong", **files) as trainer, pytest.raises(Unauthenticated):
        trainer.get_run()


def test_without_a_certificate_there_is_no_connection(mutual, pems, get_run):
    with pytest.raises(NotSecure, match="if it asks for a certificate, give tls_cert and tls_key"):
        get_run(mutual.address, tls_ca=pems.ca_file)


def test_nor_with_one_of_a_ca_that_the_server_does_not_know(mutual, pems, stranger, get_run):
    cert, key = stranger.write("spy", SPIFFE)
    with pytest.raises(NotSecure, match="of a CA that it trusts"):
        get_run(mutual.address, tls_ca=pems.ca_file, tls_cert=cert, tls_key=key)


def test_without_a_tokens_file_a_certificate_of_the_ca_is_enough(pems, get_run):
    with served(trainer_service, security=security(pems, tls_client_ca=pems.ca_file)) as running:
        assert get_run(running.address, **shown(pems, "anybody", "anybody")) == "a-run"


# ---- health in plaintext ----


def test_probes_have_a_port_of_their_own_with_nothing_else(pems):
    options = security(pems, tls_client_ca=pems.ca_file)
    with served(trainer_service, security=options, health_address="127.0.0.1:0") as running:
        with grpc.insecure_channel(running.health_address) as channel:
            assert call(channel, HEALTH, "Check") == (Code.OK, "")
            for service, method in ((TRAINER, "GetRun"), (TRAINER, "StopRun")):
                assert call(channel, service, method)[0] is Code.UNIMPLEMENTED
        with grpc.insecure_channel(running.address) as channel:
            assert call(channel, HEALTH, "Check")[0] is Code.UNAVAILABLE


# ---- rotation ----


def file_good(server, which):
    return server._service.metrics.registry.get_sample_value("plaudit_security_file_good", {"file": which})


@pytest.mark.usefixtures("changes_are_seen_at_once")
def test_certificates_change_under_load_without_one_failed_call(pems):
    """Old connections go on, new ones are made all the time, and each sees a certificate that is whole."""
    pems.write("rotated", "127.0.0.1")
    over = threading.Event()
    with (
        served(trainer_service, security=security(pems, "rotated")) as running,
        ThreadPoolExecutor(4) as pool,
    ):

        def keep_calling(lasting):
            calls = 0
            with contextlib.ExitStack() as stack:
                old = stack.enter_context(TrainerClient(running.address, tls_ca=pems.ca_file))
                while not over.is_set():
                    assert (
                        old.get_run().run_id
                        if lasting
                        else get_run_sync(running.address, tls_ca=pems.ca_file)
                    )
                    calls += 1
            return calls

        callers = [pool.submit(keep_calling, lasting) for lasting in (True, True, False, False)]
        seen = {serial(running.address)}
        for _ in range(5):
            pems.write("rotated", "127.0.0.1")
            wait_until(lambda: serial(running.address) not in seen)
            seen.add(serial(running.address))
        over.set()
        assert all(caller.result() > 5 for caller in callers)
        assert len(seen) == 6


@pytest.mark.usefixtures("changes_are_seen_at_once")
@pytest.mark.parametrize("damage", ["text", "another key", "gone"])
def test_a_bad_certificate_leaves_the_good_one_in_use_and_is_said(pems, damage, caplog):
    cert, key = pems.write("damaged", "127.0.0.1")
    with served(trainer_service, security=security(pems, "damaged")) as running:
        before = serial(running.address)
        if damage == "text":
            cert.write_text("no certificate")
        elif damage == "gone":
            key.unlink()
        else:
            key.write_bytes(pems.write("another", "127.0.0.1")[1].read_bytes())
        wait_until(lambda: file_good(running, "tls") == 0)
        assert serial(running.address) == before
        assert get_run_sync(running.address, tls_ca=pems.ca_file) == "a-run"
        assert any("the last good version stays in use" in record.getMessage() for record in caplog.records)
        pems.write("damaged", "127.0.0.1")
        wait_until(lambda: file_good(running, "tls") == 1)
        wait_until(lambda: serial(running.address) != before)


@pytest.mark.usefixtures("changes_are_seen_at_once")
def test_the_callers_ca_may_change(pems, stranger):
    callers = pems.folder / "callers.pem"
    callers.write_bytes(pems.ca_file.read_bytes())
    cert, key = stranger.write("new-team", "new-team")
    files = {"tls_ca": pems.ca_file, "tls_cert": cert, "tls_key": key}
    with served(trainer_service, security=security(pems, tls_client_ca=callers)) as running:
        with pytest.raises(NotSecure):
            get_run_sync(running.address, **files)
        callers.write_bytes(pems.ca_file.read_bytes() + stranger.ca_file.read_bytes())

        def is_known():
            with contextlib.suppress(NotSecure):
                return get_run_sync(running.address, **files)

        wait_until(is_known)
        assert get_run_sync(running.address, **shown(pems, "old-team", "old-team")) == "a-run"


@pytest.mark.usefixtures("changes_are_seen_at_once")
def test_a_client_shows_its_new_certificate_without_being_made_anew(mutual, pems):
    files = shown(pems, "renewed", "nobody.example.org")
    with TrainerClient(mutual.address, **files) as trainer:
        with pytest.raises(Unauthenticated):
            trainer.get_run()
        pems.write("renewed", SPIFFE)
        wait_until(lambda: works(trainer))
        files["tls_key"].write_text("half a key")
        assert trainer.get_run().run_id == "a-run", "files that can't be used change nothing"


@pytest.mark.usefixtures("changes_are_seen_at_once")
async def test_so_does_an_async_one(mutual, pems):
    files = shown(pems, "renewed2", "nobody.example.org")
    async with AsyncTrainerClient(mutual.address, **files) as trainer:
        with pytest.raises(Unauthenticated):
            await trainer.get_run()
        for _ in range(3):
            pems.write("renewed2", SPIFFE)
            assert (await trainer.get_run()).run_id == "a-run"


@pytest.mark.usefixtures("changes_are_seen_at_once")
def test_a_pair_that_is_replaced_while_it_is_read_is_read_again(mutual, pems, monkeypatch):
    """Or the certificate of before would go with the key of after, and no connection could be made."""
    files, check, left = shown(pems, "torn", SPIFFE), client_tls.TlsFiles._check, [2]

    def replaced_after(self):
        check(self)
        if left[0]:
            left[0] -= 1
            pems.write("torn", SPIFFE)

    monkeypatch.setattr(client_tls.TlsFiles, "_check", replaced_after)
    assert get_run_sync(mutual.address, **files) == "a-run"
    assert left == [0]
    left[0] = 1_000
    with pytest.raises(InvalidArgument, match=r"changes while it is read"):
        get_run_sync(mutual.address, **files)
    assert left == [1_000 - client_tls.MOST_READS]


def works(trainer):
    with contextlib.suppress(Unauthenticated, InvalidArgument):
        return trainer.get_run()


# ---- files that can't be used at the start ----


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("none.pem", "server.key", None), "--tls-cert: .*none.pem can't be read"),
        (
            ("server.pem", "ca.pem", None),
            "--tls-cert .*server.pem and --tls-key .*ca.pem should be",
        ),
        (("server.pem", "server.key", "server.key"), "--tls-client-ca .*server.key should be certificates"),
    ],
)
def test_a_server_does_not_start_with_files_it_cannot_use(pems, names, words):
    cert, key, ca = (name and pems.folder / name for name in names)
    with pytest.raises(OptionError, match=words):
        open_certificate(TlsFiles(cert, key, ca))
    with pytest.raises(OptionError), served(trainer_service, security=Security(cert, key, ca)):
        pass


def test_refusals_are_logged_with_who_and_why_and_no_secret(mutual, pems, caplog):
    files = shown(pems, "caller", SPIFFE)
    with caplog.at_level(logging.WARNING, "services.rpc.access"), pytest.raises(Unauthenticated):
        get_run_sync(mutual.address, token="hush-hush", **files)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "services.rpc.access"]
    assert line.startswith(f"{TRAINER}/GetRun refused to ipv4:127.0.0.1:")
    assert "wrong, or revoked" in line
    assert "hush-hush" not in caplog.text
