"""The command line: exit codes, what it prints, what it hands on, and what it doesn't import."""

import asyncio
import logging
import os
import signal
import subprocess
import sys

import pytest

from lm.errors import InputError, ModelLoadError
from services.rpc.command import ModelOptions, run_command
from services.rpc.server import Service
from services.rpc.texts import ANNOUNCEMENT


@pytest.fixture(autouse=True)
def keep_logging():
    before = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:], logging.root.level = before


def service_that(load):
    return lambda options: Service("echo", ("plaudit.test.Echo",), lambda server: None, load)


async def loads_and_is_asked_to_stop():
    os.kill(os.getpid(), signal.SIGTERM)
    return "echo: loaded"


def run(*arguments, load=loads_and_is_asked_to_stop):
    return run_command("echo", 0, service_that(load), arguments)


def test_a_drained_server_exits_0_and_has_said_where_it_listened(capsys):
    assert run("--model", "m", "--metrics-address", "127.0.0.1:0") == 0
    first, second, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("listening on 127.0.0.1:")
    assert first.rpartition(":")[2] != "0"
    assert second.startswith("metrics on 127.0.0.1:")
    assert rest in ([], ["echo: loaded"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--model"),
        (("--model", "m", "--no-such-option"), "--no-such-option"),
        (("--model", "m", "--threads", "many"), "--threads"),
        (("--model", "m", "--address", "nowhere"), "use HOST:PORT"),
        (("--model", "m", "--address", "0.0.0.0:0"), "--insecure"),
        (("--model", "m", "--log-format", "xml"), "use text or json"),
    ],
)
def test_bad_options_exit_64_with_a_sentence(arguments, words, capsys):
    assert run(*arguments) == 64
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def failing(error):
    async def load():
        raise error

    return load


def test_a_model_that_cannot_be_loaded_exits_70_with_one_line(capsys):
    assert run("--model", "m", load=failing(ModelLoadError("m: no such folder"))) == 70
    assert capsys.readouterr().err == "echo: the model can't be loaded: m: no such folder\n"


def test_an_unexpected_error_while_loading_exits_70_with_its_stack(capsys):
    assert run("--model", "m", load=failing(ZeroDivisionError("odd"))) == 70
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.endswith("echo: the model can't be loaded: odd\n")


def test_a_package_that_is_missing_exits_70_with_one_line(capsys):
    error = ModuleNotFoundError("No module named 'torch'", name="torch")
    assert run("--model", "m", load=failing(error)) == 70
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("echo: the model can't be loaded: No module named 'torch'; ")
    assert "--group serve" in line


def test_an_option_that_turns_out_wrong_while_loading_exits_64(capsys):
    assert run("--model", "m", load=failing(InputError("dtype", "unknown type 'int3'"))) == 64
    assert capsys.readouterr().err == "echo: dtype: unknown type 'int3'\n"


def test_a_taken_port_exits_69_with_one_line(capsys):
    async def listener():
        return await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)

    async def hold():
        server = await listener()
        port = server.sockets[0].getsockname()[1]
        code = await asyncio.to_thread(taken, port)
        server.close()
        return code

    def taken(port):
        arguments = [sys.executable, "-c", SCRIPT, "--model", "m", "--address", f"127.0.0.1:{port}"]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=60)

    done = asyncio.run(hold())
    assert done.returncode == 69
    (line,) = done.stderr.splitlines()
    assert "can't listen on 127.0.0.1:" in line
    assert "another process listens there" in line


SCRIPT = """
import sys
from services.rpc.command import run_service
from services.rpc.server import Service

async def load():
    return "echo: loaded"

run_service("echo", 0, lambda options: Service("echo", ("x.Y",), lambda server: None, load))
"""


def test_options_reach_the_builder_and_the_environment(monkeypatch):
    seen = []
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)

    def build(options):
        seen.append((options, os.environ["OMP_WAIT_POLICY"]))
        return service_that(loads_and_is_asked_to_stop)(options)

    arguments = ["--model", "m", "--device", "cpu", "--dtype", "float32", "--threads", "3"]
    assert run_command("echo", 0, build, arguments) == 0
    assert seen == [(ModelOptions("m", "cpu", "float32", 3), "PASSIVE")]


@pytest.mark.parametrize(
    ("arguments", "value", "asked"), [([], None, False), (["--log-texts"], None, True), ([], "1", True)]
)
def test_texts_are_in_the_log_only_where_they_are_asked_for(arguments, value, asked, monkeypatch, capsys):
    if value:
        monkeypatch.setenv("PLAUDIT_LOG_TEXTS", value)
    assert run_command("echo", 0, service_that(loads_and_is_asked_to_stop), ["--model", "m", *arguments]) == 0
    assert (ANNOUNCEMENT in capsys.readouterr().err) is asked


def test_an_empty_token_is_refused_rather_than_ignored(monkeypatch, capsys):
    monkeypatch.setenv("PLAUDIT_TOKEN", "")
    assert run("--model", "m") == 64
    assert "PLAUDIT_TOKEN is set but empty" in capsys.readouterr().err


def test_an_issuer_of_jwts_needs_its_keys(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PLAUDIT_OIDC_ISSUER", "https://idp.example.org")
    monkeypatch.setenv("PLAUDIT_OIDC_AUDIENCE", "plaudit")
    assert run("--model", "m") == 64
    assert "--oidc-jwks is missing" in capsys.readouterr().err
    assert run("--model", "m", "--oidc-jwks", str(tmp_path / "jwks.json")) == 64
    assert "jwks.json can't be read" in capsys.readouterr().err


def test_a_file_of_tokens_that_cannot_be_read_is_refused(monkeypatch, capsys):
    monkeypatch.delenv("PLAUDIT_TOKEN", raising=False)
    monkeypatch.setenv("PLAUDIT_TOKEN_FILE", "/nowhere/token")
    assert run("--model", "m") == 64
    assert "PLAUDIT_TOKEN_FILE /nowhere/token: /nowhere/token can't be read" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["reward", "reference"])
def test_help_needs_no_torch(name):
    code = (
        f"import sys, services.{name}.__main__ as main\n"
        f"from services.rpc.command import run_command\n"
        f"assert run_command('{name}', 0, main.{name}_service, ['--help']) == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'imported before it is needed'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--metrics-address" in done.stdout
