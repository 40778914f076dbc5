from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from lm.loading import load_tokenizer
from trainer.data import Context, Demonstration, Ranking
from trainer.errors import ConfigError, DataError
from trainer.examples import (
    LENGTH_COLUMNS,
    Dropped,
    Example,
    Limits,
    encode_demonstrations,
    encode_prompts,
    encode_rankings,
    length_row,
)


@pytest.fixture
def tokenizer(tiny_policy: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(tiny_policy))


def prompt(text: str) -> Context:
    return Context("f line 1", text=text)


def test_prompt_completion_eos(tokenizer: PreTrainedTokenizerBase):
    records = [Demonstration(prompt("ab"), "cd")]
    (example,), dropped = encode_demonstrations(records, tokenizer, Limits(10, 20))
    ids = tokenizer("ab", add_special_tokens=False)["input_ids"]
    assert example.token_ids[: example.start] == tuple(ids)
    assert example.token_ids[-1] == tokenizer.eos_token_id
    assert len(example) == len(example.token_ids)
    assert str(dropped) == "none"


def test_a_chat_completion_is_what_the_policy_would_generate(tokenizer: PreTrainedTokenizerBase):
    """The template's own turn: generation prompt, text, EOS, and nothing behind it."""
    messages = (("user", "hi"),)
    records = [Demonstration(Context("f", messages=messages), "hello")]
    (example,), _ = encode_demonstrations(records, tokenizer, Limits(50, 100))
    text = tokenizer.decode(example.token_ids, skip_special_tokens=False)
    assert text == "<|start|>user\nhi<|end|>\n<|start|>assistant\nhello<|end|>"
    assert tokenizer.decode(example.token_ids[example.start :]) == "hello<|end|>"


def test_what_is_too_long_is_dropped_and_counted_never_cut(tokenizer: PreTrainedTokenizerBase):
    records = [
        Demonstration(prompt("z" * 5), "z" * 4),  # 5 + 4 + 1 = 10: fits exactly
        Demonstration(prompt("z" * 6), "z"),
        Demonstration(prompt("z" * 5), "z" * 5),
        Demonstration(prompt("z" * 6), "z" * 60),
    ]
    examples, dropped = encode_demonstrations(records, tokenizer, Limits(5, 10))
    assert [len(example) for example in examples] == [10]
    assert dropped == Dropped(long_prompts=2, long_completions=1)
    assert str(dropped) == "2 with too long a prompt, 1 with too long a completion"


def test_rankings_keep_all_completions_or_none(tokenizer: PreTrainedTokenizerBase):
    records = [
        Ranking(prompt("zz"), ("z", "zz", "zzz"), (2, 1, 2)),
        Ranking(prompt("zz"), ("z", "z" * 99), (1, 2)),
        Ranking(prompt("z" * 20), ("z", "zz"), (1, 2)),
        Ranking(prompt("zz"), ("z", "zz"), (3, 3)),
        Ranking(Context("f"), ("z", "zz"), (1, 2)),
    ]
    (whole, bare), dropped = encode_rankings(records, tokenizer, Limits(10, 20))
    assert [len(example) for example in whole.examples] == [4, 5, 6]
    assert whole.ranks == (2, 1, 2)
    assert [example.start for example in bare.examples] == [0, 0]
    assert dropped == Dropped(long_prompts=1, long_completions=1, only_ties=1)
    assert "1 in which everything ties" in str(dropped)


def test_prompts_keep_their_index(tokenizer: PreTrainedTokenizerBase):
    prompts, dropped = encode_prompts([prompt("z"), prompt("z" * 9), prompt("zz")], tokenizer, 5)
    assert [(each.index, len(each.token_ids)) for each in prompts] == [(0, 1), (2, 2)]
    assert dropped.long_prompts == 1


def test_the_field_of_a_refused_completion_is_named(tokenizer: PreTrainedTokenizerBase):
    with pytest.raises(DataError, match=r"f line 1: completions\[1\]: holds"):
        encode_rankings([Ranking(prompt("a"), ("b", "<|end|>"), (1, 2))], tokenizer, Limits(9, 9))
    with pytest.raises(DataError, match=r"f line 1: completion: holds"):
        encode_demonstrations([Demonstration(prompt("a"), "<|end|>")], tokenizer, Limits(9, 9))
    chat = Context("f line 1", messages=(("user", "a"),))
    with pytest.raises(DataError, match=r"f line 1: messages\[1\]\.content: holds"):
        encode_demonstrations([Demonstration(chat, "<|end|>")], tokenizer, Limits(99, 99))


def test_limits():
    assert Limits.within(128, 64, None, "sft.max_length") == Limits(64, 128)
    assert Limits.within(128, 64, 100, "sft.max_length") == Limits(64, 100)
    with pytest.raises(ConfigError, match=r"sft\.max_length: 129 is more than the model's context of 128"):
        Limits.within(128, 64, 129, "sft.max_length")


def test_length_statistics():
    row = length_row("x", list(range(100, 0, -1)))
    assert dict(zip(LENGTH_COLUMNS, row, strict=True)) == {
        "tokens": "x",
        "count": 100,
        "least": 1,
        "median": 51,
        "95 %": 96,
        "most": 100,
        "in all": 5050,
    }
    assert length_row("one", [7])[1:] == (1, 7, 7, 7, 7, 7)


def test_an_example_is_as_long_as_its_ids():
    assert len(Example((1, 2, 3), 1)) == 3
