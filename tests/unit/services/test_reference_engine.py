"""The reference engine by itself."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from lm.errors import ModelLoadError
from services.reference.engine import ReferenceEngine
from services.reference.items import Item


@pytest.fixture(scope="module")
def engine(tiny_policy):
    return ReferenceEngine(str(tiny_policy), "cpu", "float32", 1)


def items(*asked, temperature=1.0):
    return [Item(list(ids), start, temperature) for ids, start in asked]


def test_facts(engine, tiny_policy):
    facts = engine.facts
    assert (facts.model_id, facts.dtype) == (str(tiny_policy), "float32")
    assert (facts.vocabulary_size, facts.context_length) == (300, 128)
    assert engine.token_budget == 1024


def test_one_row_per_item_one_number_per_token(engine):
    rows = engine.logprobs(items(([5, 6, 7, 8], 1), ([5, 6], 1), ([9] * 128, 100)))
    assert [len(row) for row in rows] == [3, 1, 28]
    assert all(number < 0 for row in rows for number in row)


def test_a_row_does_not_depend_on_its_batch(engine):
    asked = items(([5, 6, 7, 8], 1), ([9] * 60, 1), ([5, 6], 1))
    together = engine.logprobs(asked)
    alone = [engine.logprobs([item])[0] for item in asked]
    for row, other in zip(together, alone, strict=True):
        assert row == pytest.approx(other, abs=1e-5)


def test_a_batch_has_one_temperature(engine):
    with pytest.raises(ValueError, match="unpack"):
        engine.logprobs(items(([5, 6], 1)) + items(([5, 6], 1), temperature=2.0))


def test_probabilities_of_all_continuations_sum_to_one(engine):
    rows = engine.logprobs(items(*(([5, 6, last], 2) for last in range(300)), temperature=0.7))
    assert torch.tensor(rows, dtype=torch.float64).exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_bfloat16_weights_still_give_a_float32_softmax(tiny_policy):
    served = ReferenceEngine(str(tiny_policy), dtype="bfloat16", threads=1)
    found = served.logprobs(items(([5, 6, 7, 8], 1)))[0]
    model = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0].float()
    expected = [logits.log_softmax(-1)[at - 1, (5, 6, 7, 8)[at]].item() for at in (1, 2, 3)]
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(ModelLoadError, match="no such folder"):
        ReferenceEngine(str(tmp_path / "nowhere"), threads=1)
