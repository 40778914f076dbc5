"""The roomy cache holds what transformers' own holds, whatever is done to it."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
)
from transformers.cache_utils import DynamicSlidingWindowLayer

from lm.cache import SPARE, RoomyLayer, can_cut_left, cut_left, decode_mask, new_cache, select_rows

HEADS, SIZE = 2, 3
CONFIG = LlamaConfig(
    num_hidden_layers=2,
    hidden_size=HEADS * SIZE,
    num_attention_heads=HEADS,
    num_key_value_heads=HEADS,
    vocab_size=8,
)

TINY = {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}


def states(rows, new, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, rows, HEADS, new, SIZE, generator=generator)


def append(cache, rows, new, seed):
    """Both layers of the cache get the same keys and values."""
    keys, values = states(rows, new, seed)
    return [cache.update(keys, values, layer) for layer in range(2)]


def assert_equal(ours, theirs):
    assert ours.get_seq_length() == theirs.get_seq_length()
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        assert torch.equal(mine.keys, other.keys)
        assert torch.equal(mine.values, other.values)


def test_an_empty_cache_has_length_0():
    cache = new_cache(CONFIG)
    assert cache.get_seq_length() == 0
    assert [type(layer) for layer in cache.layers] == [RoomyLayer, RoomyLayer]


def test_update_returns_everything_so_far():
    cache = new_cache(CONFIG)
    append(cache, 3, 5, seed=0)
    (keys, values), _ = append(cache, 3, 1, seed=1)
    first_keys, first_values = states(3, 5, 0)
    next_keys, next_values = states(3, 1, 1)
    assert torch.equal(keys, torch.cat([first_keys, next_keys], dim=2))
    assert torch.equal(values, torch.cat([first_values, next_values], dim=2))


def test_mask_sizes_are_those_of_the_dynamic_cache():
    ours, theirs = new_cache(CONFIG), DynamicCache(config=CONFIG)
    for cache in (ours, theirs):
        append(cache, 3, 5, seed=0)
    assert ours.get_mask_sizes(1, 0) == theirs.get_mask_sizes(1, 0) == (6, 0)
    assert ours.get_query_offset(0) == theirs.get_query_offset(0) == 5


def test_appending_within_the_room_copies_nothing():
    cache = new_cache(CONFIG)
    append(cache, 3, 5, seed=0)
    where = cache.layers[0].keys.data_ptr()
    for step in range(SPARE):
        append(cache, 3, 1, seed=step)
        assert cache.layers[0].keys.data_ptr() == where
    append(cache, 3, 1, seed=99)
    assert cache.layers[0].keys.data_ptr() != where
    assert cache.get_seq_length() == 5 + SPARE + 1


def test_dropping_rows_leaves_the_others_where_they_are():
    cache = new_cache(CONFIG)
    append(cache, 4, 2, seed=0)
    before, where = cache.layers[0].keys.clone(), cache.layers[0].keys.data_ptr()
    select_rows(cache, torch.tensor([0, 3, 2]))  # row 3 fills the gap of row 1
    assert torch.equal(cache.layers[0].keys, before[[0, 3, 2]])
    assert cache.layers[0].keys.data_ptr() == where


def test_one_row_becomes_many():
    cache = new_cache(CONFIG)
    append(cache, 2, 3, seed=0)
    before = cache.layers[1].values.clone()
    select_rows(cache, torch.tensor([0, 0, 0, 1, 1]))
    assert torch.equal(cache.layers[1].values, before[[0, 0, 0, 1, 1]])
    append(cache, 5, 1, seed=1)
    assert cache.layers[1].values.shape == (5, HEADS, 4, SIZE)


def test_cut_left_forgets_the_oldest_positions():
    cache = new_cache(CONFIG)
    append(cache, 2, 6, seed=0)
    before = cache.layers[0].keys.clone()
    assert can_cut_left(cache)
    cut_left(cache, 2)
    assert cache.get_seq_length() == 4
    assert torch.equal(cache.layers[0].keys, before[:, :, 2:])


def test_sliding_windows_stay_with_transformers():
    config = MistralConfig(
        num_hidden_layers=2, hidden_size=6, num_attention_heads=2, num_key_value_heads=2, sliding_window=4
    )
    cache = new_cache(config)
    assert all(isinstance(layer, DynamicSlidingWindowLayer) for layer in cache.layers)
    assert not can_cut_left(cache)
    append(cache, 3, 6, seed=0)
    select_rows(cache, torch.tensor([2, 0]))
    assert cache.layers[0].keys.shape[0] == 2


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 70)),
        st.tuples(st.just("select"), st.lists(st.integers(0, 63), min_size=1, max_size=6)),
        st.tuples(st.just("cut"), st.integers(1, 3)),
    ),
    max_size=10,
)


@given(OPERATIONS)
@settings(max_examples=60, deadline=None)
def test_any_sequence_of_operations_equals_the_dynamic_cache(operations):
    ours, theirs = new_cache(CONFIG), DynamicCache(config=CONFIG)
    rows = 3
    for cache in (ours, theirs):
        append(cache, rows, 4, seed=0)
    for number, (name, value) in enumerate(operations):
        if name == "append":
            for cache in (ours, theirs):
                append(cache, rows, value, seed=number)
        elif name == "select":
            indices = torch.tensor([index % rows for index in value])
            rows = len(value)
            for cache in (ours, theirs):
                select_rows(cache, indices)
        elif value < ours.get_seq_length():
            cut_left(ours, value)
            for layer in theirs.layers:
                layer.keys, layer.values = layer.keys[:, :, value:], layer.values[:, :, value:]
        assert_equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_keeps_the_models_type(dtype):
    cache = new_cache(CONFIG)
    keys, values = states(1, 2, 0).to(dtype)
    assert cache.update(keys, values, 0)[0].dtype == dtype


class TestDecodeMask:
    MASK = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])

    def test_grouped_queries_get_biases_even_without_padding(self):
        model = LlamaForCausalLM(LlamaConfig(**TINY, num_attention_heads=4, num_key_value_heads=2))
        cache = new_cache(model.config)
        bias = decode_mask(model, cache, self.MASK)
        least = torch.finfo(torch.float32).min
        assert bias.shape == (2, 1, 1, 4)
        assert bias[:, 0, 0].tolist() == [[least, least, 0, 0], [0, 0, 0, 0]]

    @pytest.mark.parametrize(
        "config",
        [
            LlamaConfig(**TINY, num_attention_heads=4),
            LlamaConfig(**TINY, num_attention_heads=4, num_key_value_heads=2, attn_implementation="eager"),
            MistralConfig(**TINY, num_attention_heads=4, num_key_value_heads=2, sliding_window=4),
            GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2),
        ],
        ids=["ungrouped", "eager", "sliding", "gpt2"],
    )
    def test_others_make_their_own_mask(self, config):
        model = AutoModelForCausalLM.from_config(config)
        assert decode_mask(model, new_cache(config), self.MASK) is self.MASK
