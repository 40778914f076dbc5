"""The trainer takes the command line and environment that a cluster gives it, up to its first step."""

import re
import sys
import types
from dataclasses import replace

import pytest
import trustme
from manifests import COMPONENT, command, objects, of_kind, templates

from trainer import __main__ as trainer_main
from trainer.config import RunOptions
from trainer.errors import ConfigError
from trainer.loop import Loop, open_run
from trainer.servicer import serve_run


@pytest.fixture
def mounted(tmp_path):
    """A folder in the place of the container's root, with what Secrets bring."""
    authority = trustme.CA()
    made = authority.issue_cert("plaudit-trainer")
    (tmp_path / "tls").mkdir()
    authority.cert_pem.write_to_path(tmp_path / "tls/ca.crt")
    made.private_key_pem.write_to_path(tmp_path / "tls/tls.key")
    made.cert_chain_pems[0].write_to_path(tmp_path / "tls/tls.crt")
    return tmp_path


def trainers_container(found):
    (pod,) = (pod for _, pod in templates(found) if pod["metadata"]["labels"][COMPONENT] == "trainer")
    (container,) = pod["spec"]["containers"]
    return container


def command_line(found, mounted):
    """Arguments of the trainer, its files below `mounted` and its ports free ones."""
    (config,) = (each["data"] for each in of_kind(found, "ConfigMap") if "ppo.toml" in each["data"])
    (mounted / "config").mkdir()
    (mounted / "config/ppo.toml").write_text(config["ppo.toml"], encoding="utf-8")
    words = command(trainers_container(found))
    assert words[:3] == ["python", "-m", "trainer"]
    words = [re.sub(r"(^|=)/", rf"\1{mounted}/", word) for word in words[3:]]
    if f"--tokens={mounted}/tokens/tokens.toml" in words:
        (mounted / "tokens").mkdir()
        (mounted / "tokens/tokens.toml").write_text("token = []\n", encoding="utf-8")
    return [*(re.sub(r":\d+$", ":0", word) for word in words), "--set", f"run.directory={mounted}/runs"]


def environment(found, mounted, monkeypatch):
    """Sets what the container has of ours, and makes the file of tokens that it may name."""
    for each in trainers_container(found)["env"]:
        if each["name"].startswith("PLAUDIT_"):
            value = re.sub(r"^/", f"{mounted}/", each["value"])
            monkeypatch.setenv(each["name"], value)
            if each["name"] == "PLAUDIT_TOKEN_FILE":
                (mounted / value).parent.mkdir(parents=True)
                (mounted / value).write_text("a-token\n", encoding="utf-8")


@pytest.fixture
def stage(monkeypatch):
    """trainer.ppo.run without models: its ports, and a loop of no steps."""
    given = []

    def run(config, options):
        given.append(options)
        opened = open_run(config, config.run, options)
        with serve_run(opened.board, "ppo", options, opened.stop):
            Loop("ppo", opened, 0, {}, {}).run(lambda step: None, lambda done: {}, {})

    module = types.ModuleType("trainer.ppo.run")
    module.run = run
    monkeypatch.setitem(sys.modules, "trainer.ppo.run", module)
    return given


@pytest.mark.parametrize("scene", ["cpu", "production", "base+tls"])
def test_every_port_of_the_trainer_opens(scene, mounted, stage, monkeypatch, capsys):
    found = objects(scene)
    environment(found, mounted, monkeypatch)
    code = trainer_main.main(command_line(found, mounted))
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "listening on 0.0.0.0:" in printed.out and "metrics on 0.0.0.0:" in printed.out
    (options,) = stage
    has_tls = scene != "cpu"
    assert (options.tls_cert is not None) is has_tls is not options.insecure
    assert ("health on 0.0.0.0:" in printed.out) is has_tls


def test_an_address_without_tls_and_insecure_would_end_it(mounted, stage, monkeypatch, capsys):
    found = objects("cpu")
    words = [word for word in command_line(found, mounted) if word not in ("--insecure", "--resume")]
    assert trainer_main.main(words) == ConfigError.exit_code
    assert "--address 0.0.0.0:0 can be reached from other machines" in capsys.readouterr().err
    assert trainer_main.main([word for word in words if not word.startswith("--address")]) == 64
    assert "--metrics-address 0.0.0.0:0 can be reached" in capsys.readouterr().err
    assert stage[0] == replace(stage[1], address="0.0.0.0:0") != RunOptions()
