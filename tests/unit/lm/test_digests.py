import hashlib
import struct

import pytest
import torch
from hypothesis import given, strategies as st

from lm.digests import WeightsDigest, effective_tensors, hash_tensor, tensor_bytes
from lm.loading import load_causal_lm
from lm.placement import choose_placement


def test_bytes_are_little_endian_and_row_major():
    tensor = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T
    assert bytes(tensor_bytes(tensor)) == struct.pack("<4f", 1, 3, 2, 4)


def test_bfloat16_has_two_bytes():
    assert bytes(tensor_bytes(torch.tensor([1.0], dtype=torch.bfloat16))) == b"\x80\x3f"


def test_a_scalar_and_an_empty_tensor():
    assert len(tensor_bytes(torch.tensor(1.0))) == 4
    assert len(tensor_bytes(torch.zeros(0, 3))) == 0


def test_by_hand():
    inner = hashlib.sha256(struct.pack("<2f", 1, 2)).hexdigest()
    line = f"w\tfloat32\t2\t{inner}\n"
    expected = hashlib.sha256(line.encode()).hexdigest()
    assert WeightsDigest([("w", torch.tensor([1.0, 2.0]))]).hexdigest() == expected


def test_order_of_tensors_does_not_matter_and_names_do():
    a, b = torch.ones(2), torch.zeros(3)
    assert WeightsDigest([("a", a), ("b", b)]).hexdigest() == WeightsDigest([("b", b), ("a", a)]).hexdigest()
    assert WeightsDigest([("a", a)]).hexdigest() != WeightsDigest([("b", a)]).hexdigest()


@pytest.mark.parametrize("other", [torch.ones(2, 1), torch.ones(2).double(), torch.tensor([1.0, 1.5])])
def test_shape_type_and_value_count(other):
    assert hash_tensor(torch.ones(2)) != hash_tensor(other)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=4), st.integers(0, 2))
def test_a_partial_change_equals_hashing_all_again(values, index):
    named = {name: torch.zeros(3) for name in "abc"}
    before = WeightsDigest(named.items())
    name = "abc"[index]
    changed = {name: torch.tensor(values)}
    after = before.with_changed(changed.items())
    assert after.hexdigest() == WeightsDigest({**named, **changed}.items()).hexdigest()
    assert before.hexdigest() == WeightsDigest(named.items()).hexdigest()


def test_an_unknown_tensor_is_refused():
    with pytest.raises(KeyError, match="lm_head"):
        WeightsDigest([("a", torch.ones(1))]).with_changed([("lm_head", torch.ones(1))])


def test_tied_weights_count_once(tiny_policy):
    policy = load_causal_lm(str(tiny_policy), choose_placement("cpu", "float32", 1))
    names = [name for name, _ in effective_tensors(policy.model)]
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    assert len(names) == len(set(names))
