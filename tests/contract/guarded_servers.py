"""Servers without models behind tokens and certificates, and calls of any method to them."""

import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import grpc

from plaudit.access import SCOPES, token_entry
from plaudit.v1 import trainer_pb2_grpc
from services.policy.service import policy_service
from services.reference.service import reference_service
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions
from services.rpc.interceptors import Readiness
from services.rpc.options import Security, ServerOptions
from services.rpc.server import Service
from trainer.board import Board
from trainer.servicer import FULL_NAME, TrainerServicer
from trainer.stopping import StopSignal


class Loading(Readiness):
    """A model that is never loaded: calls that may pass end as UNAVAILABLE."""

    def open(self):
        pass


async def loaded():
    return ""


async def drained():
    pass


def without_model(make):
    """The service with all its methods; none of them ever runs."""
    return replace(make(ModelOptions("no-model")), load=loaded, drain=drained, readiness=Loading())


def trainer_service(board=None):
    """A service that is light and whole."""
    readiness = Readiness()
    servicer = TrainerServicer(board or Board("a-run"), StopSignal(), readiness)
    return Service(
        name="trainer",
        full_names=(FULL_NAME,),
        register=lambda server: trainer_pb2_grpc.add_TrainerServiceServicer_to_server(servicer, server),
        load=loaded,
        readiness=readiness,
    )


SERVICES = {
    "policy": lambda: without_model(policy_service),
    "reference": lambda: without_model(reference_service),
    "reward": lambda: without_model(reward_service),
    "trainer": lambda: replace(trainer_service(), readiness=Loading()),
}


@contextmanager
def served(make, tokens=None, **options):
    """A server of `make()` in the background, its callers those of the file `tokens`."""
    security = options.pop("security", Security(tokens=tokens))
    with serve_in_background(make, ServerOptions(security=security, **options)) as server:
        yield server


def write_tokens(path: Path, *entries: str) -> Path:
    path.write_text("\n".join(entries) or "token = []\n")
    return path


def entry(token, *scopes, name="somebody", expires=None, **more):
    """The lines of a token; the token itself may be any text in tests."""
    lines = token_entry(name, token, scopes, expires)
    return lines + "".join(f"{key} = {value}\n" for key, value in more.items())


def certificate_entry(identity, *scopes, name="somebody"):
    return f'[[token]]\nname = "{name}"\ncertificate = "{identity}"\nscopes = {list(scopes)}\n'


def call(channel, service, method, token=None, timeout=20):
    """The status code of a call with one empty message, and what the server said."""
    metadata = [("authorization", f"Bearer {token}")] if token is not None else []
    try:
        channel.unary_unary(f"/{service}/{method}")(b"", timeout=timeout, metadata=metadata)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def wait_until(holds, seconds=20):
    """Returns when it does."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "not within time"
        time.sleep(0.002)


LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC).date()


def only(scope):
    return f"only-{scope}"


def all_but(scope):
    return f"all-but-{scope}"


ENTRIES = [
    *(entry(only(scope), scope, name="right") for scope in SCOPES),
    *(entry(all_but(scope), *(SCOPES.keys() - {scope}), name="wrong") for scope in SCOPES),
    entry("old", *SCOPES, name="expired", expires=LONG_AGO),
]
"""A token for each scope, one for all but each, and one that has expired."""
