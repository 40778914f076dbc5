import torch
from hypothesis import given, strategies as st

from lm.loading import load_causal_lm
from lm.padding import left_pad, right_pad
from lm.placement import choose_placement

ragged = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=5)


@given(ragged)
def test_right_padding_keeps_the_ids_and_says_the_lengths(sequences):
    ids, lengths = right_pad(sequences, pad_id=7)
    assert [row[:n].tolist() for row, n in zip(ids, lengths, strict=True)] == sequences
    assert all((row[n:] == 7).all() for row, n in zip(ids, lengths, strict=True))


@given(ragged)
def test_left_padding_starts_every_sequence_at_position_0(sequences):
    ids, mask, positions = left_pad(sequences, pad_id=7)
    for row, sequence in enumerate(sequences):
        real = mask[row].bool()
        assert ids[row][real].tolist() == sequence
        assert positions[row][real].tolist() == list(range(len(sequence)))
        assert (ids[row][~real] == 7).all()


def test_logits_are_equal_alone_left_padded_and_right_padded(tiny_policy):
    model = load_causal_lm(str(tiny_policy), choose_placement("cpu", "float32", 1)).model
    short, long = [5, 6, 7], [8, 9, 10, 11, 12, 13]
    alone = model(torch.tensor([short])).logits[0]
    ids, _ = right_pad([short, long])
    torch.testing.assert_close(model(ids).logits[0, :3], alone, atol=1e-5, rtol=0)
    ids, mask, positions = left_pad([short, long])
    padded = model(ids, attention_mask=mask, position_ids=positions).logits[0, -3:]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)
