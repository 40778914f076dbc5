"""Prompts and pretraining text of a run: which come when, and which can't come at all."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from lm.loading import load_causal_lm
from lm.placement import choose_placement
from trainer.errors import ConfigError, DataError
from trainer.examples import Dropped
from trainer.ppo.config import PPOConfig
from trainer.ppo.inputs import Inputs
from trainer.ppo.rollout import Prompt

CPU = choose_placement("cpu", "float32", 1)


def inputs_of(count):
    return Inputs(tuple(Prompt(i, (i + 1,)) for i in range(count)), Dropped(), (), None)


@given(st.integers(1, 9), st.integers(1, 25), st.integers(0, 40))
def test_a_batch_goes_on_where_the_last_one_ended(count, size, start):
    inputs = inputs_of(count)
    stream = inputs.batch(0, start + 2 * size, seed=4)
    assert inputs.batch(start, size, seed=4) + inputs.batch(start + size, size, seed=4) == stream[start:]


def test_each_pass_has_every_prompt_once_in_an_order_of_its_own():
    stream = [prompt.index for prompt in inputs_of(7).batch(0, 21, seed=4)]
    passes = [stream[:7], stream[7:14], stream[14:]]
    assert all(Counter(each) == Counter(range(7)) for each in passes)
    assert len(set(map(tuple, passes))) == 3
    assert stream != [prompt.index for prompt in inputs_of(7).batch(0, 21, seed=5)]


@pytest.fixture
def read(tmp_path, tiny_policy):
    loaded = load_causal_lm(str(tiny_policy), CPU)

    def make(prompts, *, texts=(), **sections):
        for name, lines in (("prompts", prompts), ("texts", texts)):
            (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
        config = PPOConfig(
            run={"name": "r"},
            model={"path": str(tiny_policy)},
            critic={"path": "c"},
            services={"policy": ("a:1",), "reference": "a:2", "reward": "a:3"},
            data={"prompts": tmp_path / "prompts.jsonl", "pretraining": tmp_path / "texts.jsonl"},
            **sections,
        )
        return Inputs.read(config, loaded), config, loaded

    return make


def test_prompts_keep_their_source_and_too_long_ones_are_dropped_and_counted(read):
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    inputs, config, loaded = read(
        [{"prompt": "the film"}, {"prompt": "dull " * 40}, chat], sampling={"response_length": 90}
    )
    assert [(prompt.index, prompt.text, prompt.messages) for prompt in inputs.prompts] == [
        (0, "the film", ()),
        (2, "", (("user", "hi"),)),
    ]
    assert inputs.dropped.long_prompts == 1
    needs = inputs.needs(config, loaded)
    assert needs.conversations
    assert needs.longest_prompt == max(len(prompt.token_ids) for prompt in inputs.prompts)
    assert needs.longest <= 128


def test_prompts_that_all_are_too_long_say_which_settings_allow_more(read):
    with pytest.raises(DataError, match=r"no prompt has at most 1 tokens, which sampling.max_prompt_length"):
        read([{"prompt": "the film"}], sampling={"max_prompt_length": 1, "response_length": 8})


def test_a_response_that_leaves_no_room_for_a_prompt_is_named(read):
    with pytest.raises(ConfigError, match=r"sampling.response_length: 1024 leaves no room .* context of 128"):
        read([{"prompt": "the film"}], sampling={"response_length": 1024})


def test_pretraining_text_ends_in_eos_and_is_read_only_where_it_is_used(read):
    prompts, texts = [{"prompt": "the film"}], [{"text": "a dull story"}]
    short = {"response_length": 8}
    assert read(prompts, texts=[{"wrong": 1}], sampling=short)[0].pretraining is None
    inputs, _, loaded = read(prompts, texts=texts, sampling=short, ppo={"ptx_coef": 1.0})
    (piece,) = inputs.pretraining.take(1)
    assert piece == (*loaded.tokenizer("a dull story")["input_ids"], loaded.tokenizer.eos_token_id)
    with pytest.raises(DataError, match="text 1: holds the special token"):
        read(prompts, texts=[{"text": "a <|end|>"}], sampling=short, ppo={"ptx_coef": 1.0})


def test_ptx_needs_text():
    with pytest.raises(ValueError, match=r"data\.pretraining is needed"):
        PPOConfig(
            run={"name": "r"}, model={"path": "m"}, critic={"path": "c"},
            services={"policy": ("a:1",), "reference": "a:2", "reward": "a:3"},
            data={"prompts": Path("p")}, ppo={"ptx_coef": 1.0},
        )  # fmt: skip
