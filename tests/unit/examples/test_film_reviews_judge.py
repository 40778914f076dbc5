"""The held-out judge with a BERT of 16 dimensions whose vocabulary is nine words."""

import json
import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import judge
import pytest
import torch
from hypothesis import given, strategies as st
from judge import Judge
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, BertTokenizer

from lm.loading import save_model
from lm.placement import choose_placement
from trainer.evaluate.plugins import load_plugin

CPU = choose_placement("cpu", "float32", 1)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "dull", "film", "plot", "with", "."]
CLS, SEP, A, GOOD, FILM, END = 2, 3, 5, 6, 8, 11
PHRASES = ["a {} film", "{} plot", "a {} film with a plot.", "a plot with a {} film.", "{}."]


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stored like all-MiniLM: with a pooling layer, and a tokenizer file that asks for padding to 128."""
    folder = tmp_path_factory.mktemp("body")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    tokenizer = BertTokenizer({word: index for index, word in enumerate(WORDS)})
    save_model(BertModel(config), tokenizer, folder)
    stored = json.loads((folder / "tokenizer.json").read_text())
    padding = {"strategy": {"Fixed": 128}, "direction": "Right", "pad_id": 0, "pad_type_id": 0}
    stored["padding"] = {**padding, "pad_to_multiple_of": None, "pad_token": "[PAD]"}
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    return folder


def rows(good: float = 3.0, dull: float = -1.0, times: int = 20) -> list[dict[str, Any]]:
    scores = {"good": good, "dull": dull}
    return [
        {"text": phrase.format(word), "score": scores[word]} for phrase, word in product(PHRASES, scores)
    ] * times


def write(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "judge_train.jsonl", rows())
    completions = ["a dull film", "a good film", "a good film with a plot."]
    write(
        folder / "rankings_heldout_labelers.jsonl",
        [{"prompt": "", "completions": completions, "ranks": [2, 1, 1]}],
    )
    return folder


@pytest.fixture(scope="module")
def trained(body: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge that had time enough to tell good from dull."""
    folder = tmp_path_factory.mktemp("trained")
    write(folder / "judge_train.jsonl", rows())
    write(
        folder / "rankings_heldout_labelers.jsonl",
        [{"prompt": "", "completions": ["a dull plot", "a good plot"], "ranks": [2, 1]}],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(judge.SETTINGS, "epochs", 20)
        patch.setitem(judge.SETTINGS, "learning_rate", 2e-3)
        judge.ensure(folder, body, folder / "judge", CPU)
    return folder / "judge"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors") | load_file(folder / "head.safetensors")


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(0, 3))
def test_a_pass_holds_every_index_once(lengths: list[int], epoch: int):
    batches = judge.batches_of([[0] * length for length in lengths], epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(len(batch) == 16 for batch in batches[:-1])


def test_eight_batches_together_are_sorted_by_length():
    lengths = [index * 7 % 31 + 1 for index in range(300)]
    batches = judge.batches_of([[0] * length for length in lengths], 0)
    found = [lengths[index] for batch in batches for index in batch]
    assert found != sorted(found)
    assert all(found[start : start + 128] == sorted(found[start : start + 128]) for start in (0, 128, 256))


def test_each_pass_has_an_order_of_its_own():
    ids = [[0]] * 100
    assert judge.batches_of(ids, 0) == judge.batches_of(ids, 0) != judge.batches_of(ids, 1)


def test_warm_up_then_down_to_0_by_hand():
    """Of 20 steps two warm up, and 18 go down by an eighteenth each."""
    found = [judge._factor(step, 20) for step in range(20)]
    assert found == pytest.approx([0.5, 1.0] + [(20 - step) / 18 for step in range(2, 20)])


def test_ids_have_special_tokens_and_no_padding(body: Path):
    tokenizer = judge.AutoTokenizer.from_pretrained(body)
    found = judge.tokenise(tokenizer, [" A good film.", "good "])
    assert found == [[CLS, A, GOOD, FILM, END, SEP], [CLS, GOOD, SEP]]


def test_a_score_is_linear_in_the_mean_over_real_tokens(body: Path):
    scorer = judge.Scorer(judge._body(body)).eval()
    ids = [[CLS, GOOD, SEP], [CLS, A, GOOD, FILM, END, SEP]]
    hidden = [scorer.body(input_ids=torch.tensor([each])).last_hidden_state[0] for each in ids]
    expected = torch.cat([scorer.head(each_LH.mean(0)) for each_LH in hidden])
    assert torch.allclose(scorer(ids), expected, atol=1e-6)


def test_the_same_rows_give_the_same_scorer(body: Path):
    """Bit for bit, wherever the global random numbers stand."""
    scorers = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        scorers.append(judge.train(rows(), body, CPU)[0].state_dict())
    assert scorers[0].keys() == scorers[1].keys()
    assert all(torch.equal(scorers[0][name], scorers[1][name]) for name in scorers[0])


def test_word_embeddings_stay_as_they_were_and_the_rest_learns(body: Path):
    before = load_file(body / "model.safetensors")
    after = judge.train(rows(), body, CPU)[0].body.state_dict()
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(after[name], before[name])
    moved = [name for name in after if not torch.equal(after[name], before[name])]
    assert "encoder.layer.0.output.dense.weight" in moved


def test_scores_are_on_the_raters_scale(trained: Path):
    """Trained on 3 for good and −1 for dull, whose mean isn't 0."""
    good, dull = Judge(str(trained)).score(["a good film", "a dull film"])
    assert good == pytest.approx(3, abs=0.2)
    assert dull == pytest.approx(-1, abs=0.2)


def test_prompt_and_response_are_one_sentence(trained: Path):
    judged = Judge(str(trained))
    together = judged(["a good", "", "a dull film "], [" film.", "a good film.", ""])
    assert together == pytest.approx(judged.score(["a good film.", "a good film.", "a dull film"]), abs=1e-5)
    with pytest.raises(ValueError, match="shorter"):
        judged(["a"], [])


def test_company_and_padding_change_nothing(trained: Path):
    """More than 64 texts take two forward passes; each has the score it has alone."""
    judged = Judge(str(trained))
    texts = [" ".join(["good film"] * (index % 9) + ["dull."]) for index in range(70)]
    alone = [judged.score([text])[0] for text in texts]
    assert judged.score(texts) == pytest.approx(alone, abs=1e-5)
    assert len({round(score, 3) for score in alone}) == 9


def test_a_text_is_read_up_to_128_tokens(trained: Path):
    within, beyond, shorter = Judge(str(trained)).score(
        ["good " * 126, "good " * 126 + "dull " * 50, "good " * 50 + "dull " * 50]
    )
    assert within == pytest.approx(beyond, abs=1e-5)
    assert shorter < within - 0.1


def test_it_is_a_plug_in(trained: Path):
    plugin = load_plugin(f"{judge.__file__}:Judge", {"folder": str(trained)})
    assert plugin(["a good"], [" film"]) == pytest.approx(Judge(str(trained)).score(["a good film"]))


class FixedScores:
    """Scores that are known beforehand."""

    def __init__(self, **scores: float) -> None:
        self._scores = scores

    def score(self, texts: Sequence[str]) -> list[float]:
        return [self._scores[text] for text in texts]


def test_pair_accuracy_by_hand():
    """a–b equal and so wrong, a–c right, b–c a tie of people; d–e right, d–f wrong, e–f wrong."""
    rankings = [
        {"completions": ["a", "b", "c"], "ranks": [1, 2, 2]},
        {"completions": ["d", "e", "f"], "ranks": [2, 1, 3]},
    ]
    judged: Any = FixedScores(a=1.0, b=1.0, c=0.5, d=0.0, e=0.5, f=2.0)
    assert judge.pair_accuracy(judged, rankings) == {"mean": 2 / 5, "pairs": 5}


def test_a_judge_is_trained_once(data: Path, body: Path, tmp_path: Path):
    target = tmp_path / "cache" / "judge"
    record = judge.ensure(data, body, target, CPU)
    before = times(target)
    assert json.loads((target / "judge.json").read_text()) == record
    assert judge.ensure(data, body, target, CPU) == record
    assert times(target) == before
    assert [path.name for path in target.parent.iterdir()] == ["judge"]


def test_the_record_says_from_what_and_how_good(data: Path, body: Path, tmp_path: Path):
    record = judge.ensure(data, body, tmp_path / "judge", CPU)
    assert record["inputs"] == {
        "data_sha256": judge._sha256(data / "judge_train.jsonl"),
        "body_sha256": judge._sha256(body / "model.safetensors"),
        "settings": judge.SETTINGS,
    }
    rankings = judge._rows(data / "rankings_heldout_labelers.jsonl")
    assert record["accuracy"] == judge.pair_accuracy(Judge(str(tmp_path / "judge")), rankings)
    assert record["accuracy"]["pairs"] == 2


def test_other_data_trains_again(data: Path, body: Path, tmp_path: Path):
    first = judge.ensure(data, body, tmp_path / "judge", CPU)
    before = weights(tmp_path / "judge")
    write(data / "judge_train.jsonl", rows(good=-1, dull=3))
    second = judge.ensure(data, body, tmp_path / "judge", CPU)
    assert second["inputs"]["data_sha256"] != first["inputs"]["data_sha256"]
    assert not torch.equal(before["weight"], weights(tmp_path / "judge")["weight"])


def test_other_settings_train_again(data: Path, body: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    judge.ensure(data, body, tmp_path / "judge", CPU)
    before = weights(tmp_path / "judge")
    monkeypatch.setitem(judge.SETTINGS, "seed", 1)
    judge.ensure(data, body, tmp_path / "judge", CPU)
    assert not torch.equal(before["weight"], weights(tmp_path / "judge")["weight"])


@pytest.mark.parametrize("record", [None, "", '{"inputs"'])
def test_without_a_whole_record_it_is_trained(data: Path, body: Path, tmp_path: Path, record: str | None):
    target = tmp_path / "judge"
    target.mkdir()
    (target / "leftover").touch()
    if record is not None:
        (target / "judge.json").write_text(record)
    judge.ensure(data, body, target, CPU)
    assert Judge(str(target)).score(["a good film"])
    assert not (target / "leftover").exists()


def test_what_an_interrupted_run_of_the_same_id_left_is_no_obstacle(data: Path, body: Path, tmp_path: Path):
    """Process ids repeat from container to container."""
    (tmp_path / f"judge.part{os.getpid()}").mkdir()
    judge.ensure(data, body, tmp_path / "judge", CPU)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "judge"}


def test_everybody_may_read_a_judge(trained: Path):
    assert {path.stat().st_mode & 0o444 for path in trained.iterdir()} == {0o444}
