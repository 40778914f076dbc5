"""Either kind of client, for tests that hold for both; and certificates."""

import contextlib

import pytest
from certificates import Pems
from either_client import Blocking

from plaudit.clients import tls as client_tls
from services.rpc import reloading


@pytest.fixture(params=["sync", "async"])
def connect(request):
    """connect(sync class, async class, address, …) → one of the two, as a sync client."""
    with contextlib.ExitStack() as stack:

        def make(blocking, awaited, address, **options):
            client = (
                blocking(address, **options)
                if request.param == "sync"
                else Blocking(awaited(address, **options))
            )
            return stack.enter_context(client)

        yield make


@pytest.fixture(scope="module")
def pems(tmp_path_factory):
    made = Pems(tmp_path_factory.mktemp("pems"))
    made.write("server", "127.0.0.1", "localhost")
    return made


@pytest.fixture
def changes_are_seen_at_once(monkeypatch):
    """Files of certificates and tokens, by servers and clients."""
    monkeypatch.setattr(reloading, "RELOAD_S", 0.005)
    monkeypatch.setattr(client_tls, "CHECK_S", 0.0)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """Another CA, which the server doesn't know."""
    return Pems(tmp_path_factory.mktemp("stranger"))
