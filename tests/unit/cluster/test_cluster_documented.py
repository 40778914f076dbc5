"""docs/deploy.md says of the tool what it is: its commands, options and exit codes."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from trainer.cluster import errors
from trainer.cluster.__main__ import app
from trainer.cluster.calls import MANAGER
from trainer.cluster.submitting import PREFIX, job_name
from trainer.cluster.waiting import SERVICES, TRAINER
from trainer.errors import ConfigError

K8S = Path(__file__).parents[3] / "k8s"
PAGE = (K8S.parent / "docs/deploy.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("\n## The tool\n")[2].partition("\n## ")[0]
COMMANDS = re.findall(r"^python -m trainer\.cluster (.*)$", PAGE, re.MULTILINE)
GROUP = typer.main.get_command(app)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_read_as_they_stand(command):
    name, *arguments = shlex.split(command, comments=True)
    GROUP.commands[name].make_context(name, arguments)


def test_every_command_is_there_and_told():
    told = re.findall(r"^- \*\*`(\w+)`\*\*", SECTION, re.MULTILINE)
    assert told == list(GROUP.commands) == [command.split()[0] for command in COMMANDS[-4:]]


def test_options_that_are_named_are_there():
    known = {option for command in GROUP.commands.values() for each in command.params for option in each.opts}
    prose = re.sub(r"```.*?```", "", SECTION, flags=re.DOTALL)
    assert set(re.findall(r"`(--[\w-]+)", prose)) <= known


def test_exit_codes_are_those_that_are_raised():
    table = re.findall(r"^\| (\d+) \|", SECTION, re.MULTILINE)
    kinds = [each for each in vars(errors).values() if isinstance(each, type)]
    raised = {each.exit_code for each in kinds if issubclass(each, errors.ClusterError)}
    assert [int(code) for code in table] == sorted({0, ConfigError.exit_code} | raised)


def test_names_are_those_of_the_manifests():
    text = "".join(path.read_text(encoding="utf-8") for path in (K8S / "base").glob("*.yaml"))
    for name in (*SERVICES, TRAINER):
        assert re.search(rf"^  name: {name}$", text, re.MULTILINE)
    assert "plaudit-models" in (K8S / "overlays/local/models.yaml").read_text(encoding="utf-8")
    assert f"{PREFIX}NAME" in SECTION and job_name("") == TRAINER


def test_kubectl_and_the_tool_are_one_field_manager():
    applies = re.findall(r"kubectl (?:apply|diff)[^`\n]* -k ", PAGE)
    assert len(applies) > 5
    assert all(f"--server-side --field-manager={MANAGER} " in each for each in applies)


def test_an_option_that_is_none_would_be_found():
    with pytest.raises(Exception, match="No such option"):
        GROUP.commands["wait"].make_context("wait", ["--forever"])
