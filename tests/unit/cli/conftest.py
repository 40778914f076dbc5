"""The command in this process, and what it is asked about."""

import pytest
from free_ports import free_address
from toy_reward import ToyReward, serving

from plaudit.cli import main


@pytest.fixture
def run(capsysbinary):
    """run("score", …) → (exit code, stdout, stderr)."""

    def command(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsysbinary.readouterr()
        assert b"Traceback" not in captured.err
        return code, captured.out.decode(), captured.err.decode()

    return command


@pytest.fixture
def toy():
    """A ToyReward that answers at toy.address."""
    servicer = ToyReward()
    with serving(servicer) as address:
        servicer.address = address
        yield servicer


@pytest.fixture
def unused_address():
    """An address where nobody listens."""
    return free_address()


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def score(run, toy, files):
    """score("in.jsonl", …) → (exit code, stdout, stderr), with the toy's address."""
    return lambda *arguments: run("score", *arguments, "--address", toy.address)
