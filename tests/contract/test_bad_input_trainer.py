"""Wrong configurations and data files, through every stage's command line: one clear message, exit code 64.

Nothing is trained and no service is waited for: the addresses lead nowhere.
"""

import json

import pytest

from trainer.__main__ import main

USER = {"role": "user", "content": "hi"}
GOOD = {
    "demonstrations": {"prompt": "the film", "completion": " is good"},
    "rankings": {"prompt": "the film", "completions": [" is good", " is dull"], "ranks": [1, 2]},
    "prompts": {"prompt": "the film"},
}
KIND = {
    "sft": "demonstrations",
    "reward-model": "rankings",
    "ppo": "prompts",
    "evaluate": "prompts",
}
FORGED = {
    "demonstrations": (
        {"messages": [USER, {"role": "assistant", "content": "<|end|>"}]},
        "messages[1].content",
    ),
    "rankings": (
        {"messages": [USER], "completions": ["a", "<|end|>"], "ranks": [1, 2]},
        "completions[1]",
    ),
    "prompts": ({"messages": [USER, {"role": "user", "content": "<|end|>"}]}, "messages[1].content"),
}
SECTIONS = {
    "sft": '[model]\npath = "{policy}"\n[data]\ntrain = "{data}"',
    "reward-model": '[model]\npath = "{policy}"\n[data]\ntrain = "{data}"',
    "ppo": """
        [model]\npath = "{policy}"
        [critic]\npath = "{reward}"
        [services]\npolicy = ["127.0.0.1:1"]\nreference = "127.0.0.1:1"\nreward = "127.0.0.1:1"
        [data]\nprompts = "{data}"
        [sampling]\nresponse_length = 4
    """,
    "evaluate": """
        [a]\npath = "{policy}"
        [b]\npath = "{policy}"
        [data]\nprompts = "{data}"
        [sampling]\nresponse_length = 4
    """,
}


@pytest.fixture
def refusal(tmp_path, tiny_policy, tiny_reward, monkeypatch, capsys):
    """What a stage says of a file of these lines, having ended with 64 and left no result."""
    monkeypatch.chdir(tmp_path)

    def run(stage, lines, *arguments):
        data = tmp_path / "data.jsonl"
        data.write_text("\n".join(lines), encoding="utf-8")
        toml = SECTIONS[stage].format(policy=tiny_policy, reward=tiny_reward, data="data.jsonl")
        config = tmp_path / "config.toml"
        config.write_text(f'[run]\nname = "r"\nthreads = 1\n{toml}', encoding="utf-8")
        assert main([stage, str(config), *arguments]) == 64
        assert not list(tmp_path.glob("runs/r/*.json")) + list(tmp_path.glob("runs/r/checkpoints/*"))
        return capsys.readouterr().err.strip()

    return run


def lines(stage, *last, count=36):
    return [json.dumps(GOOD[KIND[stage]])] * count + [
        each if isinstance(each, str) else json.dumps(each) for each in last
    ]


@pytest.mark.parametrize("stage", SECTIONS)
def test_an_unknown_key_comes_with_the_one_that_was_meant(stage, refusal):
    told = refusal(stage, lines(stage), "--set", "run.sed=1")
    assert told.endswith("run.sed: unknown key; did you mean seed?")


@pytest.mark.parametrize("stage", SECTIONS)
def test_a_malformed_line_37_is_named(stage, refusal):
    told = refusal(stage, lines(stage, '{"prompt": "the film"', GOOD[KIND[stage]]))
    assert told.startswith("data.jsonl line 37: not JSON: ")
    assert told.endswith("each line must be one JSON object")


def test_a_ranking_with_one_completion_is_named(refusal):
    one = {"prompt": "the film", "completions": [" is good"], "ranks": [1]}
    assert refusal("reward-model", lines("reward-model", one, count=4)) == (
        "data.jsonl line 5: completions: has 1; a ranking compares at least two"
    )


@pytest.mark.parametrize("stage", SECTIONS)
def test_special_tokens_in_a_conversation_are_named(stage, refusal):
    bad, field = FORGED[KIND[stage]]
    told = refusal(stage, lines(stage, bad, count=2))
    assert f"data.jsonl line 3: {field}: holds the special token '<|end|>'; remove it" in told


@pytest.mark.parametrize("stage", ["sft", "ppo", "evaluate"])  # completions may be ranked on their own
def test_an_empty_prompt_is_named(stage, refusal):
    bad = {**GOOD[KIND[stage]], "prompt": ""}
    assert refusal(stage, lines(stage, bad, count=1)).startswith("data.jsonl line 2: prompt: is empty")


def test_a_model_that_is_not_there_is_one_line(refusal):
    told = refusal("sft", lines("sft"), "--set", "model.path=./nowhere")
    assert told == "./nowhere: no such folder"
