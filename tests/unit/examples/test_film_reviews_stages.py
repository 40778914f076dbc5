"""How the quickstart starts its parts, and what it keeps of them."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import stages as module
from quickstart import _override
from stages import StageFailed, Stages
from typer import BadParameter

DATA = Path("data")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Command lines, noted instead of run."""
    noted: list[list[str]] = []
    monkeypatch.setattr(module, "_run", lambda *command: noted.append(list(command)))
    return noted


def settings(command: Sequence[str]) -> dict[str, str]:
    pairs = [command[at + 1] for at, part in enumerate(command) if part == "--set"]
    return dict(pair.split("=", 1) for pair in pairs)


def test_a_stage_is_the_trainers_command_with_its_file(tmp_path: Path, commands: list[list[str]]):
    Stages(tmp_path / "q", tmp_path, seed=7).sft(DATA, Path("model"))
    (command,) = commands
    assert command[:4] == [sys.executable, "-m", "trainer", "sft"]
    assert Path(command[4]).is_file()
    assert {"--resume", "--exit-with-parent"} <= set(command)
    assert settings(command) == {
        "run.directory": str(tmp_path / "q/stages"),
        "run.seed": "7",
        "model.path": "model",
        "data.train": "data/demonstrations.jsonl",
        "data.validation": "data/demonstrations_validation.jsonl",
    }
    assert (tmp_path / "q/sft").readlink() == Path("stages/sft/policy")


def test_what_the_user_sets_wins_and_reaches_its_stage_only(tmp_path: Path, commands: list[list[str]]):
    overrides = [("sft", "model.path=other"), ("ppo", "ppo.gamma=0.9")]
    Stages(tmp_path / "q", tmp_path, 0, overrides).sft(DATA, Path("model"))
    (command,) = commands
    assert settings(command)["model.path"] == "other"
    assert "ppo.gamma=0.9" not in command


def run_all(stages: Stages) -> None:
    stages.sft(DATA, Path("model"))
    stages.reward_model(DATA, 0.9)
    stages.ppo(DATA)
    stages.evaluate(DATA)


def test_what_is_finished_is_not_started_again(
    tmp_path: Path, commands: list[list[str]], capsys: pytest.CaptureFixture[str]
):
    stages = Stages(tmp_path / "q", tmp_path, 0)
    for name in module.LAST_FILES.values():
        (tmp_path / "q" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "q" / name).write_text("{}")
    for name in module.LINKS.values():
        (tmp_path / "q" / name).mkdir()
    run_all(stages)
    assert commands == []
    assert capsys.readouterr().out.splitlines() == [
        f"{stage} has finished already" for stage in ("sft", "reward-model", "ppo", "evaluate")
    ]


def test_a_model_that_is_not_linked_yet_is_not_finished(tmp_path: Path, commands: list[list[str]]):
    stages = Stages(tmp_path / "q", tmp_path, 0)
    (tmp_path / "q/stages/sft").mkdir(parents=True)
    (tmp_path / "q/stages/sft/evaluation.json").write_text("{}")
    stages.sft(DATA, Path("model"))
    assert [command[3] for command in commands] == ["sft"]


def test_seconds_add_up_over_starts_also_of_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = iter([10.0, 12.5, 100.0, 101.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(now))
    with pytest.raises(StageFailed), Stages(tmp_path, tmp_path, 0).timed("sft"):
        raise StageFailed(75)
    with Stages(tmp_path, tmp_path, 0).timed("sft"):
        pass
    assert json.loads((tmp_path / "seconds.json").read_text()) == {"sft": 3.5}


def test_an_exit_code_is_handed_on():
    module._run(sys.executable, "-c", "")
    with pytest.raises(StageFailed) as caught:
        module._run(sys.executable, "-c", "raise SystemExit(64)")
    assert caught.value.code == 64


def test_an_override_names_its_stage():
    assert _override("reward-model.model.layers=2") == ("reward-model", "model.layers=2")
    for wrong in ("sft", "sft.run.seed", "policy.model.path=x", "model.path=x"):
        with pytest.raises(BadParameter, match="STAGE"):
            _override(wrong)
