"""A directory in the place of PEM files: its tls.crt, tls.key and ca.crt, for servers and clients."""

import ssl
from pathlib import Path

import httpx
import pytest
from certificates import SPIFFE, Pems, serial
from gateway_server import gateway_in_background
from guarded_servers import certificate_entry, served, trainer_service, wait_until, write_tokens

from plaudit import InvalidArgument, PermissionDenied, TrainerClient, Unauthenticated
from plaudit.clients.tls import TlsFiles, tls_files
from services.rpc.options import OptionError, Security, ServerOptions
from trainer.board import Board
from trainer.config import RunOptions
from trainer.servicer import serve_run
from trainer.stopping import StopSignal

NAMES = ("tls.crt", "tls.key", "ca.crt")


def fill(folder: Path, pems: Pems, *identities: str) -> Path:
    """The folder as Kubernetes mounts a Secret: names that lead through a link which is swapped."""
    count = len(list(folder.iterdir()))
    version = folder / f"..{count}"
    version.mkdir()
    for path, name in zip((*pems.write(folder.name, *identities), pems.ca_file), NAMES, strict=True):
        (version / name).write_bytes(path.read_bytes())
    (folder / "..new").symlink_to(version.name)
    (folder / "..new").replace(folder / "..data")
    if not count:
        for name in NAMES:
            (folder / name).symlink_to(f"..data/{name}")
    return folder


@pytest.fixture(scope="module")
def secret(pems, tmp_path_factory):
    return fill(tmp_path_factory.mktemp("of-server"), pems, "127.0.0.1", "localhost")


@pytest.fixture(scope="module")
def own(pems, tmp_path_factory):
    """A caller's."""
    return fill(tmp_path_factory.mktemp("of-caller"), pems, SPIFFE)


@pytest.fixture(scope="module")
def server(secret):
    with served(trainer_service, security=Security(secret)) as running:
        yield running


@pytest.fixture(scope="module")
def mutual(secret, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    tokens = write_tokens(path, certificate_entry(SPIFFE, "trainer:read"))
    with served(trainer_service, security=Security(secret, None, secret, tokens)) as running:
        yield running


def run_id(address, **how):
    with TrainerClient(address, timeout=10, **how) as trainer:
        return trainer.get_run().run_id


# ---- what a directory stands for ----


def test_a_servers_directory(tmp_path):
    files = (tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "ca.crt")
    other = Path("other.pem")
    assert Security(tmp_path).pem_files() == (*files[:2], None), "callers need no certificate unless asked"
    assert Security(tmp_path, None, tmp_path).pem_files() == files
    assert Security(tmp_path, other, other).pem_files() == (files[0], other, other)
    assert Security(other, tmp_path).pem_files() == (other, files[1], None)
    assert Security().pem_files() == (None, None, None)
    ServerOptions("0.0.0.0:0", security=Security(tmp_path)).check()
    with pytest.raises(OptionError, match="--tls-cert is missing"):
        Security(tls_key=tmp_path).check()
    with pytest.raises(OptionError, match="--tls-key is missing"):
        Security(tmp_path / "tls.crt").check()


def test_a_clients_directory(tmp_path):
    all_three = TlsFiles(tmp_path / "ca.crt", tmp_path / "tls.crt", tmp_path / "tls.key")
    other = Path("other.pem")
    assert tls_files(None, tmp_path, None) == tls_files(str(tmp_path), tmp_path, tmp_path) == all_three
    assert tls_files(tmp_path, None, None) == TlsFiles(tmp_path / "ca.crt", None, None)
    assert tls_files(other, tmp_path, other) == TlsFiles(other, tmp_path / "tls.crt", other)
    with pytest.raises(InvalidArgument, match="tls_key: is missing"):
        tls_files(tmp_path, other, None)


def test_a_clients_directory_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PLAUDIT_TLS_CERT", str(tmp_path))
    assert tls_files(None, None, None) == tls_files(None, tmp_path, None)
    monkeypatch.setenv("PLAUDIT_TLS_CA", "of-others.pem")
    assert tls_files(None, None, None).ca == Path("of-others.pem")


@pytest.mark.parametrize("absent", ["tls.crt", "tls.key", "ca.crt"])
def test_what_is_not_in_it_is_named(pems, tmp_path, absent):
    folder = fill(tmp_path, pems, "127.0.0.1")
    (folder / absent).unlink()
    with (
        pytest.raises(OptionError, match=f"{absent} can't be read|tls-client-ca .*{absent}"),
        served(trainer_service, security=Security(folder, None, folder)),
    ):
        pass
    with pytest.raises(InvalidArgument, match=f"{absent} can't be read"):
        run_id("127.0.0.1:1", tls_cert=folder)


# ---- servers and clients that are given one ----


def test_services_and_clients_speak_tls(server, secret, monkeypatch):
    assert run_id(server.address, tls_ca=secret) == "a-run"
    assert run_id(server.address, tls_cert=str(secret)) == "a-run"
    monkeypatch.setenv("PLAUDIT_TLS_CERT", str(secret))
    assert run_id(server.address) == "a-run"


def test_a_callers_directory_says_who_it_is(mutual, own, secret):
    assert run_id(mutual.address, tls_cert=own) == "a-run"
    with TrainerClient(mutual.address, tls_cert=own) as trainer, pytest.raises(PermissionDenied):
        trainer.stop_run()


def test_the_gateway_takes_it(secret, pems):
    options = ServerOptions(security=Security(secret))
    with gateway_in_background("127.0.0.1:1", gateway_options=options) as gateway:
        context = ssl.create_default_context(cafile=pems.ca_file)
        assert httpx.get(f"https://{gateway.address}/healthz", verify=context).status_code == 200


def test_the_trainer_takes_it(secret, capsys):
    options = RunOptions(address="127.0.0.1:0", tls_cert=secret)
    with serve_run(Board("r"), "ppo", options, StopSignal()):
        address = capsys.readouterr().out.split()[-1]
        assert run_id(address, tls_ca=secret) == "r"


# ---- and that see it change ----


@pytest.mark.usefixtures("changes_are_seen_at_once")
def test_a_secret_that_is_swapped_is_read_again(pems, tmp_path):
    folder = fill(tmp_path, pems, "127.0.0.1")
    with served(trainer_service, security=Security(folder)) as running:
        before = serial(running.address)
        with TrainerClient(running.address, timeout=10, tls_ca=folder) as trainer:
            assert trainer.get_run().run_id == "a-run"
            fill(folder, pems, "127.0.0.1")
            wait_until(lambda: serial(running.address) != before)
            assert trainer.get_run().run_id == "a-run"


@pytest.mark.usefixtures("changes_are_seen_at_once")
def test_so_is_a_callers(mutual, pems, tmp_path):
    folder = fill(tmp_path, pems, "nobody.example.org")
    with TrainerClient(mutual.address, timeout=10, tls_cert=folder) as trainer:
        with pytest.raises(Unauthenticated):
            trainer.get_run()
        fill(folder, pems, SPIFFE)
        assert trainer.get_run().run_id == "a-run"
