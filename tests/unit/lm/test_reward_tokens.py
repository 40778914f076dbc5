"""Prompts and responses as a reward model's tokens, and what is left of them when they are too long."""

import pytest
from hypothesis import given, settings, strategies as st
from tiny_models import byte_level_tokenizer
from tiny_reward_models import bare_tokenizer, bert_tokenizer, bos_tokenizer, roberta_tokenizer
from transformers import ByT5Tokenizer

from lm.errors import InputError
from lm.special_tokens import refuse_special_tokens
from lm.tokenizer import Tokens, encode_text, plain_tokens, tokenize_pair
from lm.truncation import cut

BERT, BOS, ROBERTA = bert_tokenizer(), bos_tokenizer(), roberta_tokenizer()


def tokens_of(tokenizer, pair_format, prompt="the film", response=" is", append_eos=False):
    return tokenize_pair(tokenizer, prompt, response, pair_format=pair_format, append_eos=append_eos)


# --- formats ---


def test_one_text_is_the_tokenizers_own_call_on_both():
    tokens = tokens_of(BOS, "text")
    assert tokens.ids == BOS("the film is")["input_ids"]
    assert tokens.ids[0] == BOS.bos_token_id
    assert tokens.segments == [None] + [0] * (len(tokens.ids) - 1)
    assert tokens.type_ids is None


def test_one_text_may_merge_where_two_lists_of_ids_do_not():
    tokenizer = byte_level_tokenizer(300, ["<pad>"])
    joined, apart = (tokens_of(tokenizer, each, "t", "he film") for each in ("text", "concatenate"))
    assert joined.ids == encode_text(tokenizer, "the film")
    assert apart.ids == encode_text(tokenizer, "t") + encode_text(tokenizer, "he film")
    assert len(joined.ids) < len(apart.ids)


def test_two_texts_are_the_tokenizers_own_call_on_two():
    tokens, theirs = tokens_of(BERT, "text_pair"), BERT("the film", " is")
    assert (tokens.ids, tokens.type_ids) == (theirs["input_ids"], theirs["token_type_ids"])
    assert [at for at, each in enumerate(tokens.segments) if each is None] == [
        at for at, id_ in enumerate(tokens.ids) if id_ in BERT.all_special_ids
    ]
    assert [each for each in tokens.segments if each is not None] == [
        kind for kind, each in zip(tokens.type_ids, tokens.segments, strict=True) if each is not None
    ]


def test_concatenated_ids_have_nothing_added():
    tokens = tokens_of(BOS, "concatenate")
    assert tokens == plain_tokens(encode_text(BOS, "the film") + encode_text(BOS, " is"))


@pytest.mark.parametrize("pair_format", ["text", "concatenate", "text_pair"])
def test_an_appended_eos_is_one_that_no_cut_takes(pair_format):
    tokenizer = bare_tokenizer()
    tokens = tokens_of(tokenizer, pair_format, append_eos=True)
    assert tokens.ids == [*tokens_of(tokenizer, pair_format).ids, tokenizer.eos_token_id]
    assert tokens.segments[-1] is None


def test_an_eos_that_the_tokenizer_adds_is_not_doubled_and_types_go_on_behind_one():
    tokenizer = roberta_tokenizer()
    assert tokens_of(tokenizer, "text", append_eos=True) == tokens_of(tokenizer, "text")
    tokenizer = bert_tokenizer()
    assert tokens_of(tokenizer, "text_pair", append_eos=True) == tokens_of(tokenizer, "text_pair")  # has none
    tokenizer.eos_token = "[MASK]"
    tokens = tokens_of(tokenizer, "text_pair", append_eos=True)
    assert tokens.ids[-1] == tokenizer.eos_token_id
    assert tokens.type_ids[-2:] == [1, 1]


def test_a_tokenizer_written_in_python_tells_texts_from_special_tokens_too():
    tokenizer = ByT5Tokenizer()
    assert not tokenizer.is_fast
    tokens = tokens_of(tokenizer, "text_pair", "ab", "cde")
    assert tokens.ids == tokenizer("ab", "cde")["input_ids"]
    assert tokens.segments == [0, 0, None, 1, 1, 1, None]
    assert tokens_of(tokenizer, "text_pair", "", "cde").segments == [None, 1, 1, 1, None]


@pytest.mark.parametrize("pair_format", ["text", "text_pair", "concatenate", "chat"])
@pytest.mark.parametrize(
    ("prompt", "response", "field"),
    [("a", "", "pair.response"), ("[SEP]", "b", "pair.prompt"), ("a", "b[CLS]", "pair.response")],
)
def test_every_format_refuses_empty_responses_and_special_tokens(pair_format, prompt, response, field):
    with pytest.raises(InputError) as caught:
        tokens_of(BERT, pair_format, prompt, response)
    assert caught.value.field == field


def test_a_special_token_that_only_the_seam_makes_is_refused_in_one_text():
    with pytest.raises(InputError, match=r"pair: holds the special token '\[SEP\]'"):
        tokens_of(BERT, "text", "a [S", "EP] b")
    tokens_of(BERT, "text_pair", "a [S", "EP] b")


# --- special tokens ---


def test_tokens_that_a_tokenizer_gets_later_are_special_too():
    tokenizer = byte_level_tokenizer(300, ["<pad>"])
    refuse_special_tokens(tokenizer, "a <new> b", "text")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<new>"]})
    with pytest.raises(InputError, match="'<new>'"):
        refuse_special_tokens(tokenizer, "a <new> b", "text")
    tokenizer.eos_token = "film"
    with pytest.raises(InputError, match="'film'"):
        refuse_special_tokens(tokenizer, "the film", "text")


def test_the_longest_of_special_tokens_that_begin_alike_is_named():
    tokenizer = byte_level_tokenizer(300, ["<|end|>", "<|end|>x", "<|a.b|>"])
    with pytest.raises(InputError, match=r"'<\|end\|>x'"):
        refuse_special_tokens(tokenizer, "1 <|end|>x", "text")
    refuse_special_tokens(tokenizer, "<|aXb|>", "text")  # a dot is a dot


def test_a_tokenizer_without_any_refuses_nothing():
    refuse_special_tokens(byte_level_tokenizer(300, []), "<s>", "text")


# --- cuts ---


def test_a_cut_by_hand():
    tokens = Tokens(
        [1, 10, 11, 12, 2, 20, 21, 2], [None, 0, 0, 0, None, 1, 1, None], [0, 0, 0, 0, 0, 1, 1, 1]
    )
    right = Tokens([1, 10, 11, 2, 20, 21, 2], [None, 0, 0, None, 1, 1, None], [0, 0, 0, 0, 1, 1, 1])
    assert cut(tokens, 7, "right") == right
    assert cut(tokens, 7, "left").ids == [1, 11, 12, 2, 20, 21, 2]
    assert cut(tokens, 6, "right").ids == [1, 10, 11, 2, 20, 2]  # the longer one has the odd token
    assert cut(tokens, 5, "left").ids == [1, 12, 2, 21, 2]
    assert cut(tokens, 3, "left").ids == [1, 2, 2]
    assert cut(plain_tokens([5, 6, 7]), 2, "left").ids == [6, 7]
    assert cut(plain_tokens([5, 6, 7]), 2, "right").ids == [5, 6]


@settings(deadline=None)
@given(
    prompt=st.integers(0, 30), response=st.integers(1, 30), limit=st.integers(4, 40),
    side=st.sampled_from(["left", "right"]), which=st.sampled_from(["bert", "roberta", "bos"]),
)  # fmt: skip
def test_any_cut_is_the_tokenizers_own(prompt, response, limit, side, which):
    tokenizer = {"bert": BERT, "roberta": ROBERTA, "bos": BOS}[which]
    texts = ("x" * prompt, "q" * response)
    tokenizer.truncation_side = side
    theirs = tokenizer(*texts, truncation="longest_first", max_length=limit)
    ours = cut(tokens_of(tokenizer, "text_pair", *texts), limit, side)
    assert ours.ids == theirs["input_ids"]
    assert ours.type_ids == theirs.get("token_type_ids")
