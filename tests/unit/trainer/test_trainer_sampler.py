import pytest
import torch
from hypothesis import given, strategies as st

from trainer.errors import CheckpointError
from trainer.sampler import EpochSampler, derived_seed, permutation


@given(size=st.integers(1, 40), batch=st.integers(1, 12), seed=st.integers(0, 2**62))
def test_every_index_once_a_pass(size: int, batch: int, seed: int):
    sampler = EpochSampler(size, batch, seed)
    for epoch in (1, 2):
        batches = [sampler.next_batch() for _ in range(sampler.batches_per_epoch)]
        assert sorted(index for each in batches for index in each) == list(range(size))
        assert all(len(each) == batch for each in batches[:-1])
        assert sampler.epochs == epoch


@given(size=st.integers(1, 20), batch=st.integers(1, 7), done=st.integers(0, 12))
def test_a_restored_sampler_goes_on(size: int, batch: int, done: int):
    sampler = EpochSampler(size, batch, 5)
    for _ in range(done):
        sampler.next_batch()
    other = EpochSampler(size, batch, 5)
    other.load_state_dict(sampler.state_dict())
    assert other.epochs == sampler.epochs
    assert [other.next_batch() for _ in range(9)] == [sampler.next_batch() for _ in range(9)]


def test_passes_differ_and_seeds_differ():
    orders = {tuple(permutation(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4
    assert permutation(50, 1, 1) == permutation(50, 1, 1)


def test_global_random_numbers_are_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    EpochSampler(10, 2, 0).next_batch()
    assert torch.equal(torch.rand(1), expected)


def test_other_data_is_refused():
    state = EpochSampler(10, 2, 0).state_dict()
    with pytest.raises(CheckpointError, match="10 examples and seed 0, not 11 and 0"):
        EpochSampler(11, 2, 0).load_state_dict(state)
    with pytest.raises(CheckpointError):
        EpochSampler(10, 2, 1).load_state_dict(state)


def test_derived_seeds_are_apart():
    seeds = {
        derived_seed(seed, *purpose) for seed in (0, 1) for purpose in (("a",), ("a", 1), ("b",), ("a", 11))
    }
    assert len(seeds) == 8
    assert derived_seed(0, "a") == derived_seed(0, "a")
    assert all(0 <= seed < 2**56 for seed in seeds)
