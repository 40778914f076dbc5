"""Importing the client is quick, and brings nothing of what the servers need."""

import subprocess
import sys

import pytest

import plaudit
import plaudit.clients

HEAVY = ("torch", "transformers", "safetensors", "pydantic", "services", "trainer", "lm")


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    "module", ["plaudit", "plaudit.clients", "plaudit.cli", "plaudit.v1.policy_pb2_grpc"]
)
def test_light(module):
    loaded = python(f"import sys, {module}; print(*sys.modules)").split()
    assert not set(HEAVY) & set(loaded)
    assert module in loaded


@pytest.mark.parametrize("what", ["import plaudit", "from plaudit import RewardClient, AsyncRewardClient"])
def test_import_takes_under_0_4_seconds(what):
    code = f"import time; t = time.process_time(); {what}; print(time.process_time() - t)"
    assert min(float(python(code)) for _ in range(3)) < 0.4


def test_who_wants_no_bar_and_no_array_imports_none():
    loaded = python("import sys; from plaudit import RewardClient; print(*sys.modules)").split()
    assert not {"rich", "typer", "numpy"} & set(loaded)


def test_servers_load_no_client():
    loaded = python("import sys; from plaudit.v1 import reward_pb2_grpc; print(*sys.modules)").split()
    assert "plaudit.clients" not in loaded


def test_everything_is_exported_and_known_to_type_checkers():
    names = plaudit.clients.__all__
    assert names == sorted(names, key=str.lower) or names == sorted(names)
    for name in names:
        assert getattr(plaudit, name) is getattr(plaudit.clients, name)
        assert name in dir(plaudit)
    from pathlib import Path

    source = Path(plaudit.__file__).read_text(encoding="utf-8")
    assert all(f"{name} as {name}," in source for name in names)


def test_no_other_names():
    with pytest.raises(AttributeError, match="'plaudit' has no attribute 'Nothing'"):
        _ = plaudit.Nothing
    with pytest.raises(ImportError):
        from plaudit import nothing  # noqa: F401
