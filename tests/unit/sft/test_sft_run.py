import json
import logging
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import DEVICES, TOLERANCE
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer import checkpoints
from trainer.config import RunOptions
from trainer.errors import ConfigError, DataError, NotFinite, Stopped
from trainer.metrics_file import read_lines
from trainer.optimisation import TrainedModel
from trainer.sft import run as stage
from trainer.sft.config import SFTConfig
from trainer.sft.run import FineTuning, run

MakeConfig = Callable[..., SFTConfig]
GOLDEN = Path(__file__).parents[2] / "golden" / "sft.json"
TIMED = ("time", "seconds_per_step", "tokens_per_second")


def lines(config: SFTConfig) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock says."""
    found = read_lines(config.run.folder / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in TIMED} for line in found]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    mine, theirs = weights(one), weights(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("device", DEVICES)
def test_golden_losses(make_config: MakeConfig, device: str):
    config = make_config(model={"device": device})
    run(config, RunOptions())
    found = {
        "train/loss": [line["train/loss"] for line in lines(config)],
        "validation/loss": [line["validation/loss"] for line in lines(config) if "validation/loss" in line],
    }
    if os.environ.get("PLAUDIT_REGENERATE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    for name, values in golden.items():
        assert found[name] == pytest.approx(values, rel=TOLERANCE[device]), name


def test_it_learns_and_leaves_what_it_says(make_config: MakeConfig):
    config = make_config()
    run(config, RunOptions())
    found = lines(config)
    folder = config.run.folder
    assert [line["step"] for line in found] == list(range(1, 9))
    assert found[-1]["validation/loss"] < found[3]["validation/loss"] < math.log(300)
    assert found[-1]["epoch"] == 2
    assert found[0]["lr"] == 5e-3
    assert found[4]["lr"] == pytest.approx(0.55 * 5e-3)
    assert same_weights(folder / "epochs" / "2", folder / "policy")
    assert not same_weights(folder / "epochs" / "1", folder / "policy")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["epoch"] == 2
    assert set(evaluation["epochs"]) == {"1", "2"}
    model = AutoModelForCausalLM.from_pretrained(folder / "policy")
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=2).shape[1] <= 4
    assert len(AutoTokenizer.from_pretrained(folder / "policy")) == model.config.vocab_size


@pytest.mark.parametrize(
    "sections",
    [{}, {"model": {"trainable": "top:1", "dtype": "bfloat16"}}, {"sft": {"attention_dropout": 0.3}}],
)
def test_stopped_and_resumed_is_as_if_nothing_had_been(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
):
    """Bit for bit; stopped in the middle of an epoch, away from the regular checkpoints."""
    straight = make_config("straight", **sections)
    run(straight, RunOptions())
    resumed = make_config("resumed", **sections)
    take_step = FineTuning._take_step

    def stop_in_step_2(self: FineTuning, step: int) -> Any:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return take_step(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(FineTuning, "_take_step", stop_in_step_2)
        with pytest.raises(Stopped, match="after step 2 of 8"):
            run(resumed, RunOptions())
    assert not (resumed.run.folder / "policy").exists()
    run(resumed, RunOptions(resume=True))
    assert lines(resumed) == lines(straight)
    assert same_weights(resumed.run.folder / "policy", straight.run.folder / "policy")
    states = [checkpoints.load(config.run.checkpoints / "step-00000008") for config in (straight, resumed)]
    adams = [json.dumps(state["policy"]["optimiser"], default=lambda t: t.tolist()) for state in states]
    assert adams[0] == adams[1]


def test_two_runs_are_equal_and_another_seed_is_not(make_config: MakeConfig):
    configs = [make_config("a"), make_config("b"), make_config("c", run={"seed": 1, "name": "c"})]
    for config in configs:
        run(config, RunOptions())
    losses = [[line["train/loss"] for line in lines(config)] for config in configs]
    assert losses[0] == losses[1] != losses[2]


def test_global_random_numbers_are_neither_used_nor_moved(make_config: MakeConfig):
    config = make_config(sft={"attention_dropout": 0.3})
    opened = stage.open_run(config, config.run, RunOptions(dry_run=True))
    tuning = FineTuning(config, opened)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    tuning._take_step(0)
    assert torch.equal(torch.rand(1), expected)


def test_only_the_chosen_parameters_change(make_config: MakeConfig, tiny_policy: Path):
    config = make_config(model={"trainable": "top:1"})
    run(config, RunOptions())
    before, after = weights(tiny_policy), weights(config.run.folder / "policy")
    changed = {name for name in after if not torch.equal(before[name].double(), after[name].double())}
    assert changed
    assert all(name.startswith(("model.layers.1.", "model.norm")) for name in changed)


def test_a_finished_run_says_so_and_does_nothing(make_config: MakeConfig, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    config = make_config()
    run(config, RunOptions())
    before = (config.run.folder / "evaluation.json").stat().st_mtime_ns
    run(config, RunOptions(resume=True))
    assert "s has finished already; its policy is" in caplog.text
    assert (config.run.folder / "evaluation.json").stat().st_mtime_ns == before


def test_an_end_that_was_cut_off_is_made_up_for(make_config: MakeConfig):
    config = make_config()
    run(config, RunOptions())
    (config.run.folder / "evaluation.json").unlink()
    run(config, RunOptions(resume=True))
    assert json.loads((config.run.folder / "evaluation.json").read_text())["epoch"] == 2


def test_another_epoch_can_be_chosen_afterwards(make_config: MakeConfig):
    run(make_config(), RunOptions())
    config = make_config(sft={"select": 1})
    run(config, RunOptions(resume=True))
    assert same_weights(config.run.folder / "epochs" / "1", config.run.folder / "policy")


def test_best_loss_is_of_validation(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch):
    losses = iter([1.0, 2.0])
    monkeypatch.setattr(FineTuning, "_validate", lambda self: {"validation/loss": next(losses)})
    config = make_config(sft={"select": "best_loss"})
    run(config, RunOptions())
    assert json.loads((config.run.folder / "evaluation.json").read_text())["epoch"] == 1


def test_selections_that_cannot_be(make_config: MakeConfig):
    with pytest.raises(ConfigError, match=r"sft\.select: there is no epoch 3"):
        run(make_config(sft={"select": 3}), RunOptions())
    config = make_config(sft={"select": "best_loss"})
    without = config.model_copy(update={"data": config.data.model_copy(update={"validation": None})})
    with pytest.raises(ConfigError, match=r"sft\.select: best_loss needs data\.validation"):
        run(without, RunOptions())


def test_it_runs_without_validation(make_config: MakeConfig):
    config = make_config(sft={"num_train_epochs": 1})
    without = config.model_copy(update={"data": config.data.model_copy(update={"validation": None})})
    run(without, RunOptions())
    assert not any("validation/loss" in line for line in lines(without))


def test_a_dry_run_prints_sizes_and_leaves_nothing(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    run(make_config(sft={"max_prompt_length": 8}, model={"trainable": "top:1"}), RunOptions(dry_run=True))
    out = capsys.readouterr().out
    for expected in (
        "train: completion + EOS",
        "with too long a prompt",
        "parameters trained",
        " = ",
        "float64",
    ):
        assert expected in out
    assert not (tmp_path / "runs").exists()


def test_data_that_does_not_fit_at_all(make_config: MakeConfig):
    with pytest.raises(DataError, match=r"train\.jsonl: no demonstration fits; dropped: 14 with too long"):
        run(make_config(sft={"max_prompt_length": 1}), RunOptions())
    with pytest.raises(ConfigError, match=r"sft\.max_length: 999 is more than the model's context of 128"):
        run(make_config(sft={"max_length": 999}), RunOptions())


def test_changed_data_is_refused_on_resume(make_config: MakeConfig):
    config = make_config()
    run(config, RunOptions())
    (config.run.folder / "evaluation.json").unlink()
    with config.data.train.open("a") as file:
        file.write('\n{"prompt": "a", "completion": " b"}\n')
    with pytest.raises(ConfigError, match=r"data\.train \(.*train\.jsonl\): sha256 .* → sha256"):
        run(config, RunOptions(resume=True))


def test_gradients_that_are_not_finite_move_nothing_and_end_the_run(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(TrainedModel, "gradient_norm", lambda self: math.nan)
    config = make_config()
    with pytest.raises(NotFinite):
        run(config, RunOptions())
    found = lines(config)
    assert [line["skipped_updates"] for line in found] == [1, 2]
    assert found[0]["grad_norm"] is None


def test_chat_demonstrations_train(make_config: MakeConfig, tmp_path: Path):
    path = tmp_path / "chat.jsonl"
    turns = [{"role": "user", "content": "the film"}, {"role": "assistant", "content": "good"}]
    path.write_text("\n".join([json.dumps({"messages": turns})] * 4))
    config = make_config(data={"train": str(path), "validation": str(path)}, sft={"num_train_epochs": 6})
    run(config, RunOptions())
    assert lines(config)[-1]["train/loss"] < lines(config)[0]["train/loss"]
