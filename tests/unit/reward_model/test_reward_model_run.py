import json
import logging
import math
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import DEVICES, TOLERANCE
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lm.loading import load_reward_model, load_tokenizer
from lm.placement import Placement
from lm.tokenizer import encode_pair
from trainer.config import RunOptions
from trainer.data import Context, Ranking, read_demonstrations
from trainer.errors import ConfigError, DataError, Stopped
from trainer.examples import RankedExamples
from trainer.metrics_file import read_lines
from trainer.reward_model import run as reward_model_run
from trainer.reward_model.config import RewardModelConfig
from trainer.reward_model.dataset import pair_format, separate_pad
from trainer.reward_model.run import RewardModelling, run

MakeConfig = Callable[..., RewardModelConfig]
GOLDEN = Path(__file__).parents[2] / "golden" / "reward_model.json"
TIMED = ("time", "seconds_per_step", "tokens_per_second")


def lines(config: RewardModelConfig) -> list[dict[str, Any]]:
    found = read_lines(config.run.folder / "metrics.jsonl")
    return [{name: value for name, value in line.items() if name not in TIMED} for line in found]


def weights(config: RewardModelConfig) -> dict[str, torch.Tensor]:
    return load_file(config.run.folder / "reward" / "model.safetensors")


def evaluation_of(config: RewardModelConfig) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((config.run.folder / "evaluation.json").read_text())
    return found


def demonstration_rewards(config: RewardModelConfig) -> torch.Tensor:
    """(raw − mean) / std of each demonstration, by Hugging Face's own forward on ids made from text."""
    folder = config.run.folder / "reward"
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert config.data.demonstrations is not None
    scores = []
    for each in read_demonstrations(config.data.demonstrations):
        ids = encode_pair(
            tokenizer, each.context.text, each.completion,
            pair_format=model.config.plaudit_pair_format, append_eos=model.config.append_eos,
        )  # fmt: skip
        with torch.no_grad():
            scores.append(model(input_ids=torch.tensor([ids])).logits[0, 0])
    return (torch.stack(scores) - model.config.reward_mean) / model.config.reward_std


@pytest.mark.parametrize("device", DEVICES)
def test_golden_losses(make_config: MakeConfig, device: str):
    config = make_config(model={"device": device})
    run(config, RunOptions())
    found = {"train/loss": [line["train/loss"] for line in lines(config)]}
    found["validation"] = [evaluation_of(config)["validation"]["measures"]["validation/loss"]]
    found["reward_mean"] = [evaluation_of(config)["reward_mean"]]
    if os.environ.get("PLAUDIT_REGENERATE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    for name, values in golden.items():
        assert found[name] == pytest.approx(values, rel=TOLERANCE[device]), name


def test_it_learns_the_order(make_config: MakeConfig, caplog: pytest.LogCaptureFixture):
    config = make_config(reward_model={"num_train_epochs": 10})
    with caplog.at_level("INFO"):
        run(config, RunOptions())
    assert caplog.messages[-1] == f"the reward model: {config.run.folder / 'reward'}"
    found = lines(config)
    validated = [line["validation/accuracy"] for line in found if "validation/accuracy" in line]
    assert len(validated) == 10
    assert validated[-1] > 0.85
    assert evaluation_of(config)["validation"]["accuracy"]["mean"] == pytest.approx(validated[-1])
    assert found[-1]["train/loss"] < math.log(2)


def test_demonstrations_score_zero_on_average(make_config: MakeConfig):
    config = make_config()
    run(config, RunOptions())
    rewards = demonstration_rewards(config)
    assert float(rewards.mean()) == pytest.approx(0, abs=1e-9)
    assert evaluation_of(config)["reward_std"] == 1.0


def test_a_gain_makes_their_deviation_one(make_config: MakeConfig):
    config = make_config(reward_model={"gain": True})
    run(config, RunOptions())
    rewards = demonstration_rewards(config)
    assert float(rewards.mean()) == pytest.approx(0, abs=1e-9)
    assert float(rewards.std(correction=0)) == pytest.approx(1, abs=1e-9)


def test_without_demonstrations_scores_are_served_as_they_come(make_config: MakeConfig):
    config = make_config()
    bare = config.model_copy(
        update={"data": config.data.model_copy(update={"demonstrations": None, "validation": None})}
    )
    run(bare, RunOptions())
    assert (evaluation_of(bare)["reward_mean"], evaluation_of(bare)["reward_std"]) == (0.0, 1.0)
    assert "validation" not in evaluation_of(bare)


def test_it_loads_as_a_reward_model_of_our_own(make_config: MakeConfig):
    config = make_config(model={"layers": 1})
    run(config, RunOptions())
    placement = Placement(torch.device("cpu"), torch.float32, 1, "for a test")
    loaded = load_reward_model(str(config.run.folder / "reward"), placement)
    assert loaded.reward_mean == pytest.approx(evaluation_of(config)["reward_mean"])
    assert (loaded.pair_format, loaded.append_eos) == ("concatenate", True)
    assert loaded.model.config.num_hidden_layers == 1
    assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id != loaded.tokenizer.eos_token_id


def test_the_depth_must_be_one_the_model_has(make_config: MakeConfig):
    from lm.errors import InputError

    with pytest.raises(InputError, match=r"layers: 7 is not in 1\.\.2"):
        run(make_config(model={"layers": 7}), RunOptions())


@pytest.mark.parametrize("sections", [{}, {"model": {"trainable": "top:1", "dtype": "bfloat16"}}])
def test_stopped_and_resumed_is_as_if_nothing_had_been(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
):
    straight, resumed = make_config("straight", **sections), make_config("resumed", **sections)
    run(straight, RunOptions())
    take_step = RewardModelling._take_step

    def stop_in_step_2(self: RewardModelling, step: int) -> Any:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return take_step(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(RewardModelling, "_take_step", stop_in_step_2)
        with pytest.raises(Stopped, match="after step 2 of"):
            run(resumed, RunOptions())
    run(resumed, RunOptions(resume=True))
    assert lines(resumed) == lines(straight)
    mine, theirs = weights(resumed), weights(straight)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert evaluation_of(resumed) == evaluation_of(straight)


def test_a_finished_run_says_so(make_config: MakeConfig, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    config = make_config()
    run(config, RunOptions())
    run(config, RunOptions(resume=True))
    assert "r has finished already; its model is" in caplog.text


def test_an_end_that_was_cut_off_is_made_up_for(make_config: MakeConfig):
    config = make_config()
    run(config, RunOptions())
    before = evaluation_of(config)
    (config.run.folder / "evaluation.json").unlink()
    shutil.rmtree(config.run.folder / "reward")
    run(config, RunOptions(resume=True))
    assert evaluation_of(config) == before
    assert weights(config)


def test_the_head_follows_the_seed_and_learns_faster_by_its_factor(make_config: MakeConfig):
    configs = [
        make_config("a", run={"seed": 0}),
        make_config("b", run={"seed": 1, "name": "b"}),
        make_config("c", reward_model={"head_learning_rate_factor": 5.0}),
    ]
    losses = []
    for config in configs:
        run(config, RunOptions())
        losses.append([line["train/loss"] for line in lines(config)])
    assert losses[0][0] != losses[1][0]
    assert losses[0][0] == losses[2][0]
    assert losses[0][1] != losses[2][1]


def test_schedule(make_config: MakeConfig):
    config = make_config(reward_model={"warmup_steps": 2})
    run(config, RunOptions())
    rates = [line["lr"] / 3e-3 for line in lines(config)]
    assert rates[:3] == pytest.approx([0.1, 0.55, 1.0])
    assert rates[-1] < 1.0


def test_held_out_labelers_are_measured_apart(make_config: MakeConfig):
    config = make_config()
    other = config.data.train.with_name("labelers.jsonl")
    shutil.copy(config.data.train, other)
    run(make_config(data={"heldout_labelers": str(other)}, reward_model={"human_ceiling": 0.9}), RunOptions())
    found = evaluation_of(config)
    assert found["human_ceiling"] == 0.9
    assert "heldout_labelers/accuracy" in lines(config)[-1]
    assert found["heldout_labelers"]["accuracy"]["n"] > found["validation"]["accuracy"]["n"]


def test_what_two_files_rank_is_scored_once(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch):
    config = make_config()
    assert config.data.validation is not None
    same = config.data.validation.with_name("labelers.jsonl")
    shutil.copy(config.data.validation, same)
    scored: list[int] = []
    all_scores = reward_model_run.all_scores

    def counted(model: Any, placement: Any, rankings: Sequence[RankedExamples], size: int) -> list[Any]:
        scored.append(len(rankings))
        return all_scores(model, placement, rankings, size)

    monkeypatch.setattr(reward_model_run, "all_scores", counted)
    changes = {"heldout_labelers": str(same), "demonstrations": None}
    run(make_config(data=changes, reward_model={"num_train_epochs": 1}), RunOptions())
    found = evaluation_of(config)
    assert scored == [found["validation"]["accuracy"]["n"], 0]
    assert found["heldout_labelers"]["accuracy"] == found["validation"]["accuracy"]


def test_training_completions_among_the_held_out_are_told(
    make_config: MakeConfig, caplog: pytest.LogCaptureFixture
):
    config = make_config()
    shutil.copy(config.data.train, config.data.validation or "")
    run(config, RunOptions(dry_run=True))
    assert "of data.validation are in data.train too" in caplog.text


def test_a_dry_run_prints_sizes_and_leaves_nothing(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    run(make_config(model={"trainable": "top:1"}), RunOptions(dry_run=True))
    out = capsys.readouterr().out
    for expected in ("Completions with their prompts", "demonstrations", "Rankings", "parameters trained"):
        assert expected in out
    assert not (tmp_path / "runs").exists()


def test_data_that_does_not_fit_at_all(make_config: MakeConfig):
    with pytest.raises(DataError, match=r"train\.jsonl: no ranking fits"):
        run(make_config(reward_model={"max_prompt_length": 1}), RunOptions())
    with pytest.raises(DataError, match=r"demonstrations\.jsonl: no demonstration fits"):
        config = make_config()
        assert config.data.demonstrations is not None
        config.data.demonstrations.write_text(json.dumps({"prompt": "z" * 90, "completion": "z" * 90}))
        run(config, RunOptions())


def test_pairs_of_conversations_train_and_say_chat(make_config: MakeConfig, tmp_path: Path):
    path = tmp_path / "pairs.jsonl"
    pair = {"messages": [{"role": "user", "content": "a film"}], "chosen": "good", "rejected": "dull"}
    path.write_text("\n".join([json.dumps(pair)] * 12))
    run(make_config(data={"train": str(path)}), RunOptions())
    config = make_config(data={"train": str(path)})
    assert evaluation_of(config)["plaudit_pair_format"] == "chat"
    assert lines(config)[-1]["train/loss"] < math.log(2)


def test_pair_format_of_mixed_records_is_plain():
    text = Ranking(Context("f", text="a"), ("b", "c"), (1, 2))
    chat = Ranking(Context("f", messages=(("user", "a"),)), ("b", "c"), (1, 2))
    assert [pair_format(each) for each in ([text], [chat], [text, chat])] == [
        "concatenate",
        "chat",
        "concatenate",
    ]


def test_pad_is_never_eos(tiny_policy: Path, foreign_reward: Path):
    tokenizer = load_tokenizer(str(tiny_policy))
    assert separate_pad(tokenizer) == tokenizer.pad_token_id == 0
    tokenizer.pad_token = tokenizer.eos_token
    assert separate_pad(tokenizer) != tokenizer.eos_token_id
    assert tokenizer.pad_token != tokenizer.eos_token
    with pytest.raises(ConfigError, match=r"model\.path: the tokenizer has no special token beside EOS"):
        separate_pad(load_tokenizer(str(foreign_reward)))
