"""docs/data-formats.md against the readers: every example is read, and every kind of file has one."""

import hashlib
import inspect

import pytest
import torch
from doc_pages import DOCS, codes, fences, rows, sections

from lm.digests import WeightsDigest
from lm.loading import load_reward_model
from lm.placement import choose_placement
from trainer import data
from trainer.errors import DataError

PAGE = sections((DOCS / "data-formats.md").read_text(encoding="utf-8"))
READERS = {
    "Demonstrations": data.read_demonstrations,
    "Rankings": data.read_rankings,
    "Pairs": data.read_rankings,
    "Prompts": data.read_prompts,
    "Pretraining text": data.read_texts,
}


def examples(heading, folder):
    """The examples below a heading as a file, and their number."""
    (block,) = fences(PAGE[heading], "jsonl")
    path = folder / f"{heading}.jsonl"
    path.write_text(block, encoding="utf-8")
    return path, len(block.splitlines())


@pytest.mark.parametrize("heading", READERS)
def test_every_example_is_read(heading, tmp_path):
    path, count = examples(heading, tmp_path)
    assert len(READERS[heading](path)) == count


def test_every_reader_has_examples():
    public = {fn for name, fn in inspect.getmembers(data, inspect.isfunction) if name.startswith("read_")}
    assert public == set(READERS.values())


@pytest.mark.parametrize("heading", ["Demonstrations", "Rankings", "Pairs", "Prompts"])
def test_both_forms_of_a_prompt_are_shown(heading, tmp_path):
    path, _ = examples(heading, tmp_path)
    found = READERS[heading](path)
    contexts = [each if heading == "Prompts" else each.context for each in found]
    assert {bool(context.messages) for context in contexts} == {True, False}


def test_the_shown_ranking_ties_and_has_a_labeler(tmp_path):
    path, _ = examples("Rankings", tmp_path)
    ranking = data.read_rankings(path)[0]
    assert (ranking.ranks, ranking.labeler) == ((1, 3, 3, 2), "anna")


def test_the_shown_error_is_the_readers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = '{"prompt": "p", "chosen": "a", "rejected": "b"}\n'
    bad = '{"prompt": "p", "completions": ["a", "b", "c", "d"], "ranks": [1, 2, 3]}\n'
    path = data.Path("rankings.jsonl")
    path.write_text(36 * good + bad, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        data.read_rankings(path)
    (shown,) = fences(PAGE["Rules for all input files"], "text")
    assert str(caught.value) == shown.strip()


def test_the_keys_of_a_reward_models_configuration_have_the_stated_defaults(foreign_reward):
    said = {codes(key)[0]: default for key, default, _ in rows(PAGE["Models"])}
    loaded = load_reward_model(str(foreign_reward), choose_placement("cpu", "float32", 1))
    assert float(said.pop("reward_mean")) == loaded.reward_mean
    assert float(said.pop("reward_std")) == loaded.reward_std
    assert said.pop("append_eos") == str(loaded.append_eos).lower()
    assert codes(said.pop("plaudit_pair_format"))[-1] == loaded.pair_format  # it has no template
    assert not said


def test_a_digest_is_made_as_described():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    sha256 = hashlib.sha256(values.numpy().astype("<f4").tobytes()).hexdigest()
    lines = f"a\tfloat32\t2,2\t{sha256}\nb\tfloat32\t2,2\t{sha256}\n"
    digest = WeightsDigest([("b", values), ("a", values)])
    assert digest.hexdigest() == hashlib.sha256(lines.encode()).hexdigest()
