"""The models that a file names lie below the roots of the reward server."""

import subprocess
import sys

import pytest

import services.reward.__main__ as main
from lm.errors import InputError
from lm.roots import Roots
from services.reward.config import model_specs
from services.rpc.command import ModelOptions, run_command

TEXT = """
[[models]]
name = "first"
path = "{first}"

[[models]]
name = "both"
ensemble = ["first", "second"]

[[models]]
name = "second"
path = "{second}"
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "models/rm").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "models/link").symlink_to("../out")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLAUDIT_ROOTS", raising=False)
    return tmp_path.resolve()


def file(place, second, first="models/rm"):
    path = place / "out/models.toml"  # which is named by the command line, and may lie anywhere
    path.write_text(TEXT.format(first=first, second=second), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("path", ["models/rm", "./out/../models/rm", "models/not-there", "org/rm"])
def test_folders_below_the_roots_and_hub_ids_pass(place, path):
    first, _, second = model_specs(ModelOptions(file(place, path)), Roots(["models"]))
    assert (first.path, second.path) == ("models/rm", path)


@pytest.mark.parametrize(
    "path", ["out", "/nowhere", "../x", "models/link", "models/../out", "models/link/new"]
)
def test_other_places_are_refused_by_their_key(place, path):
    with pytest.raises(InputError) as caught:
        model_specs(ModelOptions(file(place, path)), Roots(["models"]))
    assert caught.value.field == "models[2].path"
    assert caught.value.description == (
        f"{path!r} leads to no place below the roots {place}/models (--roots, PLAUDIT_ROOTS)"
    )
    model_specs(ModelOptions(file(place, path)))  # without roots nothing changes


def test_the_model_of_the_command_line_is_the_operators_own(place):
    (spec,) = model_specs(ModelOptions("out"), Roots(["models"]))
    assert spec.path == "out"


def run(*arguments):
    return run_command("reward", 0, main.build, arguments, more=[main.ROOTS])


@pytest.mark.usefixtures("root_logger")
def test_roots_of_the_option_and_of_the_environment_end_it_with_64(place, monkeypatch, capsys):
    model = ("--model", file(place, "models/link"))
    assert run(*model, "--roots", "models") == 64
    monkeypatch.setenv("PLAUDIT_ROOTS", f"/runs:{place}/models")
    assert run(*model) == 64
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("models[2].path: 'models/link' leads to no place below the roots ")
    assert f"/runs, {place}/models " in second
    assert run(*model, "--roots", "") == 64
    assert "--roots: '' has an empty entry" in capsys.readouterr().err


def test_without_roots_the_service_is_built(place, monkeypatch):
    given = []
    monkeypatch.setattr(main, "reward_service", lambda options, roots: given.append(roots))
    main._given.append(None)
    main.build(ModelOptions(file(place, "/anywhere")))
    main._given.append("/models")
    main.build(ModelOptions(file(place, "/anywhere")))
    assert given[0] is None and given[1].misfit("/models/x") is None


def test_help_says_it_and_needs_no_torch():
    code = (
        "import sys, services.reward.__main__ as main\n"
        "from services.rpc.command import run_command\n"
        "assert run_command('reward', 0, main.build, ['--help'], more=[main.ROOTS]) == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'imported before it is needed'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--roots DIR:DIR" in done.stdout
