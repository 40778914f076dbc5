"""A package that isn't installed is one line that says what brings it; a module of ours is a fault."""

import subprocess
import sys

import pytest

from services.packages import absence, brought_by
from trainer.__main__ import report

# None in sys.modules makes an import fail as that of a package that isn't there.
WITHOUT = """
import runpy, sys
sys.modules[sys.argv.pop(1)] = None
runpy.run_module(sys.argv.pop(1), run_name="__main__")
"""


def run_without(package, module, *arguments):
    command = [sys.executable, "-c", WITHOUT, package, module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("package", "module", "group"),
    [
        ("grpc_channelz", "services.reward", "serve"),
        ("typer", "services.policy", "serve"),
        ("prometheus_client", "services.reference", "serve"),
        ("typer", "services.gateway", "gateway"),
        ("pydantic", "trainer", "train"),
    ],
)
def test_a_command_says_in_one_line_what_brings_a_package(package, module, group):
    done = run_without(package, module, "--help")
    assert done.returncode == 70
    (line,) = done.stderr.splitlines()
    assert package in line
    assert f"`pip install -e . --group {group}`" in line


def test_so_does_the_gateway_of_what_it_imports_when_it_is_to_serve():
    done = run_without("uvicorn", "services.gateway", "--reward", "127.0.0.1:1", "--address", "127.0.0.1:0")
    assert done.returncode == 70
    (line,) = done.stderr.splitlines()
    assert "uvicorn" in line


def test_so_does_the_trainer_of_what_a_stage_imports(capsys):
    assert report(ModuleNotFoundError("No module named 'torch'", name="torch"), debug=False) == 70
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("No module named 'torch'; ")
    assert "--group train" in line


def test_a_package_of_others_is_told():
    told = absence(ModuleNotFoundError("No module named 'torch'", name="torch"), "serve")
    assert told.startswith("No module named 'torch'; in a checkout, `pip install -e . --group serve`")


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'services.gone'", name="services.gone"),
        ModuleNotFoundError("Could not import module 'AutoModel'"),
        ImportError("cannot import name 'x' from 'torch'", name="torch"),
        ValueError("torch"),
    ],
)
def test_nothing_else_is(error):
    assert absence(error, "serve") is None
    if isinstance(error, ImportError):
        with pytest.raises(type(error)), brought_by("serve"):
            raise error


def test_what_is_there_passes():
    with brought_by("serve"):
        import json
    assert json
