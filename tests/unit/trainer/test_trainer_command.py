import sys
from pathlib import Path
from types import ModuleType

import pytest

from lm.errors import InputError, ModelLoadError
from trainer import __main__ as command
from trainer.config import RunOptions
from trainer.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NotFinite,
    ServiceUnreachable,
    Stopped,
    TrainerError,
)

TOML = '[run]\nname = "a"\ndirectory = "{folder}"\n[model]\npath = "m"\n[data]\ntrain = "t.jsonl"\n'


@pytest.fixture
def toml(tmp_path: Path) -> str:
    path = tmp_path / "a.toml"
    path.write_text(TOML.format(folder=tmp_path))
    return str(path)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """trainer.sft.run, which records what it is called with."""
    module = ModuleType("trainer.sft.run")
    module.calls = []  # type: ignore[attr-defined]
    module.error = None  # type: ignore[attr-defined]

    def run(config: object, options: RunOptions) -> None:
        module.calls.append((config, options))
        if module.error is not None:
            raise module.error

    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trainer.sft.run", module)
    return module


def test_a_stage_gets_its_configuration_and_options(stage: ModuleType, toml: str):
    arguments = ["sft", toml, "--set", "run.seed=3", "--set", "sft.batch_size=2", "--resume", "--insecure"]
    assert command.main([*arguments, "--address", "127.0.0.1:1", "--metrics-address", "127.0.0.1:2"]) == 0
    ((config, options),) = stage.calls
    assert (config.run.seed, config.sft.batch_size) == (3, 2)
    assert options == RunOptions(True, False, "127.0.0.1:1", "127.0.0.1:2", True)


def test_reflection_is_there_unless_it_is_left_out(stage: ModuleType, toml: str):
    assert command.main(["sft", toml, "--no-reflection"]) == command.main(["sft", toml]) == 0
    assert [options.reflection for _, options in stage.calls] == [False, True]


def test_print_config_prints_what_reads_back(
    stage: ModuleType, toml: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert command.main(["sft", toml, "--print-config", "--set", "run.seed=3"]) == 0
    printed = capsys.readouterr().out
    again = tmp_path / "again.toml"
    again.write_text(printed)
    assert command.main(["sft", str(again), "--print-config"]) == 0
    assert capsys.readouterr().out == printed
    assert "seed = 3" in printed
    assert stage.calls == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError(["a.b: wrong"]), 64),
        (DataError("x.jsonl line 3: not JSON"), 64),
        (InputError("trainable", "selects nothing"), 64),
        (ModelLoadError("m: no such folder"), 64),
        (ServiceUnreachable("reward at h:1 (services.reward)"), 69),
        (NotFinite("three in a row"), 70),
        (CheckpointError("damaged"), 70),
        (TrainerError("other"), 70),
        (RuntimeError("boom\nsecond line"), 70),
        (Stopped("stopped after step 3"), 75),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(
    stage: ModuleType, toml: str, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
):
    stage.error = error  # type: ignore[attr-defined]
    assert command.main(["sft", toml]) == code
    told = capsys.readouterr().err.strip()
    assert len(told.splitlines()) == 1
    assert "Traceback" not in told


def test_unreachable_services_are_69_wherever_they_come_from(stage: ModuleType, toml: str):
    from plaudit.clients.errors import DeadlineExceeded, InvalidArgument, Overloaded, Unavailable, Unreachable
    from trainer.ppo.roles import RoleUnavailable

    codes = [
        command.exit_code(kind.__new__(kind))
        for kind in (RoleUnavailable, Unreachable, Unavailable, Overloaded, DeadlineExceeded, InvalidArgument)
    ]
    assert codes == [69, 69, 69, 69, 69, 70]


def test_several_problems_stand_on_a_line_each(toml: str, capsys: pytest.CaptureFixture[str]):
    assert command.main(["sft", toml, "--set", "sft.x=1", "--set", "run.seed=-1"]) == 64
    assert capsys.readouterr().err.splitlines() == [
        f"configuration {toml}:",
        "  run.seed: input should be greater than or equal to 0, not -1",
        "  sft.x: unknown key",
    ]


def test_debug_shows_the_traceback(
    stage: ModuleType, toml: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    stage.error = RuntimeError("boom")  # type: ignore[attr-defined]
    assert command.main(["sft", toml, "--debug"]) == 70
    assert "Traceback" in caplog.text
    assert "RuntimeError: boom" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sft"], "Missing argument 'CONFIG.toml'"),
        (["nothing"], "No such command 'nothing'"),
        (["sft", "a.toml", "--nope"], "No such option: --nope"),
    ],
)
def test_a_wrong_command_line_is_64(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]):
    assert command.main(arguments) == 64
    told = capsys.readouterr().err
    assert "Usage" in told
    assert says in told


def test_help_names_the_stages(capsys: pytest.CaptureFixture[str]):
    assert command.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(stage.command in out for stage in command.STAGES)
