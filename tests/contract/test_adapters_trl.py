"""PlauditReward in TRL as released: GRPO and RLOO runs of a tiny model, rewarded by a real service."""

import math
import re
from pathlib import Path

import pytest
from adapter_cases import rewards, serving
from free_ports import free_address

from plaudit import Chat, InvalidArgument, Unreachable
from plaudit.adapters.trl import PlauditReward

PAGE = Path(__file__).parents[2] / "docs/adapters/trl.md"
TEXTS = [f"the film number {number} is" for number in range(4)]
UNSCORABLE = "the <|end|> of the film"  # holds a special token of the reward model
TRAINERS = {"grpo": "GRPO", "rloo": "RLOO"}


@pytest.fixture(scope="module")
def address(tiny_reward):
    with serving(tiny_reward) as address:
        yield address


@pytest.fixture(scope="module")
def other_address(foreign_reward):
    with serving(foreign_reward) as address:
        yield address


@pytest.fixture
def train(tiny_policy, tmp_path):
    """train("grpo" or "rloo", reward functions, prompts): the trainer after two steps of 8 completions."""

    def run(algorithm, reward_funcs, prompts):
        import trl  # seconds, in every worker that only looks which tests there are
        from datasets import Dataset

        trainer_class, config_class = (
            getattr(trl, TRAINERS[algorithm] + kind) for kind in ("Trainer", "Config")
        )
        config = config_class(
            output_dir=str(tmp_path),
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=8,
            generation_kwargs={"min_new_tokens": 8},  # none is empty by chance
            max_steps=2,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = trainer_class(
            model=str(tiny_policy),
            reward_funcs=reward_funcs,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        )
        trainer.train()
        return trainer

    return run


def steps(trainer):
    """What was logged of each step."""
    return [entry for entry in trainer.state.log_history if "reward" in entry]


def conversations(texts):
    return [[{"role": "user", "content": text}] for text in texts]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", TRAINERS)
def test_text_is_rewarded_as_the_service_scores_it(train, algorithm, address):
    trainer = train(algorithm, PlauditReward(address, on_error="none"), TEXTS)
    logs = trainer._logs  # of the last step
    given = list(zip(logs["prompt"], logs["completion"], logs["rewards"]["plaudit"], strict=True))
    assert len(given) == 8
    expected = rewards(address, [(prompt, completion) for prompt, completion, _ in given])
    assert [reward for *_, reward in given] == pytest.approx(expected, abs=1e-5)
    assert len({round(reward, 4) for *_, reward in given}) > 4
    for entry in steps(trainer):
        assert entry["rewards/plaudit/mean"] == pytest.approx(entry["reward"])
        assert entry["plaudit/unscored"] == 0
        assert entry["grad_norm"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", TRAINERS)
def test_conversations_are_rewarded_as_conversations(train, algorithm, address):
    given = []
    reward = PlauditReward(address, on_error="none")

    def watched(prompts, completions, **columns):
        result = reward(prompts, completions, **columns)
        given.extend(zip(prompts, completions, result, strict=True))
        return result

    train(algorithm, watched, conversations(TEXTS))
    assert len(given) == 16
    scored = [each for each in given if each[2] is not None]
    chats = [Chat(prompt + completion) for prompt, completion, _ in scored]
    assert all(completion[-1]["role"] == "assistant" for _, completion, _ in given)
    assert [reward for *_, reward in scored] == pytest.approx(rewards(address, chats), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", TRAINERS)
def test_what_cant_be_scored_has_no_reward_and_no_advantage(train, algorithm, address, caplog):
    trainer = train(algorithm, PlauditReward(address, on_error="none"), [TEXTS[0], UNSCORABLE])
    logs = trainer._logs
    without = [math.isnan(given) for given in logs["rewards"]["plaudit"]]
    assert sum(without) == 4
    advantages = zip(logs["advantages"], without, strict=True)
    assert all((advantage == 0) == none for advantage, none in advantages)
    assert [entry["plaudit/unscored"] for entry in steps(trainer)] == [0.5, 0.5]
    assert not any(math.isnan(entry["loss"]) or math.isnan(entry["reward"]) for entry in steps(trainer))
    assert "item.pair.prompt: holds the special token '<|end|>'" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", TRAINERS)
def test_or_it_ends_the_training_with_the_reason(train, algorithm, address):
    with pytest.raises(InvalidArgument, match=r"completion 0 can't be scored: .*special token"):
        train(algorithm, PlauditReward(address), [UNSCORABLE] * 4)


@pytest.mark.slow
def test_a_service_that_is_nowhere_ends_the_training_whatever_on_error_says(train):
    nowhere = free_address()
    reward = PlauditReward(nowhere, on_error="none", timeout=0.3, patience=0)
    with pytest.raises(Unreachable, match=nowhere):
        train("grpo", reward, TEXTS)


@pytest.mark.slow
def test_two_models_side_by_side(train, address, other_address):
    functions = [
        PlauditReward(address, on_error="none", name="films"),
        PlauditReward(other_address, on_error="none", name="style", truncation="left"),
    ]
    trainer = train("grpo", functions, TEXTS)
    for entry in steps(trainer):
        total = entry["rewards/films/mean"] + entry["rewards/style/mean"]
        assert entry["reward"] == pytest.approx(total, abs=1e-4)
        assert entry["films/unscored"] == entry["style/unscored"]


@pytest.mark.slow
def test_the_page_does_what_it_says(address, tiny_policy, tmp_path, monkeypatch):
    (block,) = re.findall(
        r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    Path("prompts.jsonl").write_text("".join(f'{{"prompt": "{text}"}}\n' for text in TEXTS[:2]))
    block = block.replace("127.0.0.1:50052", address).replace("Qwen/Qwen3-0.6B", str(tiny_policy))
    block = block.replace('"runs/grpo",', '"runs/grpo", use_cpu=True,')
    names = {}
    exec(block, names)
    history = names["trainer"].state.log_history
    assert history[-1]["train_loss"] is not None
    assert names["trainer"].state.global_step > 0


# --- the function itself ---


def test_it_has_the_name_that_trl_logs(address):
    assert PlauditReward(address).__name__ == "plaudit"
    assert PlauditReward(address, name="films").__name__ == "films"


def test_it_takes_whatever_columns_the_data_set_has(address):
    reward = PlauditReward(address)
    given = reward(
        prompts=["the film"],
        completions=[" is good"],
        completion_ids=[[1, 2]],
        source=["imdb"],
        trainer_state=object(),
        log_extra=lambda *_: None,
        log_metric=lambda *_: None,
    )
    assert given == pytest.approx(rewards(address, [("the film", " is good")]), abs=1e-6)


def test_no_completions_no_rewards(address):
    assert PlauditReward(address)([], [], log_metric=pytest.fail) == []


def test_more_than_a_stream_has_under_way_at_once(address):
    completions = [f" {number}" for number in range(1500)]
    given = PlauditReward(address)(["x"] * 1500, completions)
    assert given == pytest.approx(rewards(address, [("x", each) for each in completions]), abs=1e-5)


def test_prompts_and_completions_must_be_aligned(address):
    with pytest.raises(ValueError, match="zip"):
        PlauditReward(address)(["the film"], [])


def test_on_error_is_one_of_two_words(address):
    with pytest.raises(InvalidArgument, match='on_error: 0 is neither "raise" nor "none"'):
        PlauditReward(address, on_error=0)
