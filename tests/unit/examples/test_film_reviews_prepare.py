"""The split and its files, on made-up sentences."""

import hashlib
import json
import random
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import assets
import prepare
import pytest
from hypothesis import given, strategies as st
from prepare import Sentence

from trainer.data import read_demonstrations, read_prompts, read_rankings

Parts = dict[str, list[Sentence]]
Files = dict[str, list[dict[str, Any]]]

WORDS = ["film", "story", "wit", "heart", "plot", "scene", "dull", "warm", "slow", "bright"]
LINES = 500
WORD = st.text("abcXYZ019,'-", min_size=1, max_size=6)
RANKINGS = ("rankings", "rankings_tuning", "rankings_heldout", "rankings_heldout_labelers")


def sentence(text: str, mean_a: int | Fraction = 0, mean_b: int | Fraction = 0) -> Sentence:
    return Sentence(text, Fraction(mean_a), Fraction(mean_b))


NUMBERED = [sentence(f"film number {index}") for index in range(60)]


def collection() -> tuple[str, str]:
    """Both files of the ratings; openings are few, so that they collide across the parts."""
    chooser = random.Random(0)
    sentences, ratings = [], []
    for line in range(1, LINES + 1):
        start = chooser.choice(["The film", "A story", "This plot", "... what a", '"Nice" is a'])
        text = " ".join([start, *chooser.choices(WORDS, k=chooser.randint(1, 26)), f"n{line} ."])
        scores = [chooser.randint(-4, 4) for _ in range(5)]
        sentences.append(f"{line}\t0.0\t{text}")
        ratings.append(f"{line}\t0.0\t1.0\t{scores}")
    return "\n".join(sentences), "\n".join(ratings)


@pytest.fixture
def parts() -> Parts:
    return prepare.split(prepare.read_sentences(*collection()))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few demonstrations and prompts, so that there is something beyond them."""
    monkeypatch.setattr(prepare, "VALIDATION_DEMONSTRATIONS", 10)
    monkeypatch.setattr(prepare, "DEMONSTRATIONS", 40)
    monkeypatch.setattr(prepare, "EVALUATION_PROMPTS", 8)
    monkeypatch.setattr(assets, "ratings_files", lambda cache: collection())


@pytest.fixture
def files(parts: Parts, small: None) -> Files:
    found = prepare.files(parts)
    return {name.removesuffix(".jsonl"): rows for name, rows in found.items()}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("a dull film", "a dull film"),
        ("wit &amp; heart, &quot;so&quot; to say", 'wit & heart, "so" to say'),
        ("a ''real'' film with a `plot' that’s good", "a \"real\" film with a 'plot' that's good"),
        ("thin  but moving", "thin - but moving"),
        ("thin   but moving  ", "thin - but moving"),
        ("wit , heart ; and why ? ( some ) charm !", "wit, heart; and why? (some) charm!"),
        ("it moves .", "it moves."),
        ("it moves  .", "it moves."),
        ("it ... moves", "it ... moves"),
        ("it moves ...", "it moves ..."),
        ("``it moves .''", "it moves."),
        ("'it moves'", "it moves"),
        ("'one' or 'two'", "'one' or 'two'"),
        ("'it doesn't move'", "it doesn't move"),
        ("'Solaris' moves", "'Solaris' moves"),
        ("the actors' best", "the actors' best"),
    ],
)
def test_normalise(raw: str, expected: str):
    assert prepare.normalise(raw) == expected


@given(st.text("ab ,.()'\"`-", max_size=20))
def test_a_normalised_text_has_no_runs_of_spaces(text: str):
    found = prepare.normalise(text)
    assert "  " not in found
    assert found == found.strip()


def test_even_columns_are_half_a_and_odd_ones_half_b():
    found = prepare.read_sentences("7\t0.5\ta film .", "7\t0.5\t1.2\t[1, -4, 2, 3, 0]")
    assert found == [Sentence("a film.", Fraction(1), Fraction(-1, 2))]
    (thirds,) = prepare.read_sentences("7\t0\ta film", "7\t0\t0\t[1, 0, 0, 0, 0]")
    assert thirds.mean_a == Fraction(1, 3)


def test_sentences_of_more_than_24_words_are_left_out():
    lines = [f"{count}\t0\t{' '.join(['word'] * count)}" for count in (24, 25)]
    found = prepare.read_sentences("\n".join(lines), "24\t0\t0\t[1, 2]\n25\t0\t0\t[1, 2]")
    assert [len(each.text.split()) for each in found] == [24]


def test_files_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="sentence 7 stands beside the ratings of 8"):
        prepare.read_sentences("7\t0\ta film", "8\t0\t0\t[1, 2]")
    with pytest.raises(ValueError, match="shorter"):
        prepare.read_sentences("7\t0\ta film\n8\t0\ta plot", "7\t0\t0\t[1, 2]")


@given(st.text("abc XYZ.", min_size=1))
def test_a_text_lands_in_the_same_part_in_any_case(text: str):
    found = prepare.split(map(sentence, (text.lower(), text.upper(), text)))
    assert sorted(map(len, found.values())) == [0, 0, 0, 3]


@given(st.permutations(NUMBERED))
def test_the_split_knows_no_order(shuffled: list[Sentence]):
    assert prepare.split(shuffled) == prepare.split(NUMBERED)


def test_shares_of_the_split():
    found = prepare.split(sentence(f"story {index}") for index in range(4000))
    shares = {name: len(part) / 4000 for name, part in found.items()}
    assert shares == pytest.approx({"train": 0.45, "judge": 0.35, "tuning": 0.06, "test": 0.14}, abs=0.025)


def test_a_hash_depends_on_purpose_and_text():
    digest = hashlib.blake2b(b"split:a film", digest_size=8).hexdigest()
    assert prepare.fraction_of("split", "a film") == int(digest, 16) / 2**64
    assert prepare.fraction_of("order", "a film") != prepare.fraction_of("split", "a film")


@given(st.lists(WORD, min_size=5, max_size=24))
def test_an_opening_of_2_to_5_words_leaves_at_least_3(words: list[str]):
    text = " ".join(["A", *words[1:]])
    pair = prepare.opening(text)
    assert pair is not None
    prompt, completion = pair
    assert prompt + completion == text
    assert completion[0] == " "
    assert 2 <= len(prompt.split()) <= 5
    assert len(completion.split()) >= 3


def test_openings_have_every_length():
    pairs = map(prepare.opening, (f"Film {index} is a good and warm one" for index in range(50)))
    assert {len(pair[0].split()) for pair in pairs if pair} == {2, 3, 4, 5}


@pytest.mark.parametrize("start", ["(It)", '"It"', "'It'", "...it"])
def test_no_prompt_starts_with_a_mark(start: str):
    assert prepare.opening(f"{start} is a slow film.") is None


def test_a_short_sentence_has_no_opening():
    assert prepare.opening("") is None
    assert prepare.opening("Dull, dull, dull film.") is None


@given(st.integers(0, 60), st.integers(0, 60))
def test_groups_are_consecutive_of_4_to_9_and_leave_at_most_3(first: int, last: int):
    sentences = NUMBERED[first:last]
    found = prepare.groups(sentences)
    joined = [each for group in found for each in group]
    assert joined == sentences[: len(joined)]
    assert len(sentences) - len(joined) <= 3
    assert all(4 <= len(group) <= 9 for group in found)


def test_groups_have_every_size():
    sentences = [sentence(f"film {index}") for index in range(1000)]
    assert {len(group) for group in prepare.groups(sentences)} == {4, 5, 6, 7, 8, 9}


def test_dense_ranks_by_hand():
    half = Fraction(1, 2)
    assert prepare.dense_ranks([half, Fraction(2), Fraction(-1), half, Fraction(2, 4)]) == [2, 1, 3, 2, 2]


FOUR = [sentence("a", 3, 2), sentence("b", 1, 3), sentence("c", 1, 0), sentence("d", 0, 0)]


@pytest.mark.parametrize(("half", "ranks"), [("a", [1, 2, 2, 3]), ("b", [2, 1, 3, 3])])
def test_rankings_of_whole_sentences_by_one_half(half: str, ranks: list[int]):
    expected = {"prompt": "", "completions": ["a", "b", "c", "d"], "ranks": ranks, "labeler": f"half-{half}"}
    assert prepare.rankings(FOUR, half) == [expected]


def test_ceiling_by_hand():
    """A ties b and c; of the five pairs left B turns a and b round, and ties c and d: 3 + ½ of 5."""
    found = prepare.ceiling(FOUR)
    assert (found["pair_accuracy"], found["pairs"]) == (0.7, 5)


def test_no_prompt_occurs_twice(files: Files):
    rows = [files[name] for name in ("prompts", "prompts_tuning", "prompts_final")]
    prompts = [row["prompt"] for each in rows for row in each]
    assert all(rows)
    assert len(set(prompts)) == len(prompts)
    assert len(files["prompts_final"]) == 8


def test_a_prompt_that_could_be_evaluated_is_not_trained_on(files: Files, parts: Parts):
    """Not even one beyond those that are used."""
    pairs = [prepare.opening(each.text) for each in parts["test"] + parts["tuning"]]
    evaluated = {pair[0] for pair in pairs if pair}
    assert len(evaluated) > len(files["prompts_final"] + files["prompts_tuning"])
    assert not evaluated & {row["prompt"] for row in files["prompts"]}


def test_ppo_prompts_come_from_sentences_without_a_demonstration(files: Files, parts: Parts):
    demonstrations = files["demonstrations"] + files["demonstrations_validation"]
    shown = {row["prompt"] + row["completion"] for row in demonstrations}
    texts = {each.text for each in parts["train"]}
    assert [len(shown), len(files["demonstrations"])] == [50, 40]
    assert shown <= texts
    fresh = {pair[0] for text in texts - shown if (pair := prepare.opening(text))}
    assert {row["prompt"] for row in files["prompts"]} <= fresh


def test_the_judge_learns_from_half_b_of_its_own_part(files: Files, parts: Parts):
    for name, part in (("judge_train", "judge"), ("judge_test", "test")):
        expected = [{"text": each.text, "score": round(float(each.mean_b), 6)} for each in parts[part]]
        assert files[name] == expected
    assert any(each.mean_a != each.mean_b for each in parts["judge"])


def test_parts_share_no_sentence(files: Files):
    held = {name: {text for row in files[name] for text in row["completions"]} for name in RANKINGS[:3]}
    held["judge"] = {row["text"] for row in files["judge_train"]}
    assert all(held.values())
    assert not any(one & other for one, other in combinations(held.values(), 2))


def test_both_halves_rank_the_same_test_sentences(files: Files):
    by_a, by_b = files["rankings_heldout"], files["rankings_heldout_labelers"]
    assert [row["completions"] for row in by_a] == [row["completions"] for row in by_b]
    assert [row["ranks"] for row in by_a] != [row["ranks"] for row in by_b]
    assert {row["labeler"] for name in RANKINGS[:3] for row in files[name]} == {"half-a"}
    assert {row["labeler"] for row in by_b} == {"half-b"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_bytes_each_time(tmp_path: Path):
    one, other = (contents(prepare.prepare(tmp_path / name)) for name in ("one", "other"))
    assert one == other
    assert len(one) == 12


def test_only_a_file_that_differs_is_written(tmp_path: Path):
    folder = prepare.prepare(tmp_path)
    before = contents(folder)
    (folder / "prompts.jsonl").write_text("cut o")
    (folder / "split.json").unlink()
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    prepare.prepare(tmp_path)
    assert contents(folder) == before
    kept = {path.name for path in folder.iterdir() if path.stat().st_mtime_ns == times.get(path.name)}
    assert before.keys() - kept == {"prompts.jsonl", "split.json"}


def test_split_json_says_what_was_written(tmp_path: Path, parts: Parts):
    folder = prepare.prepare(tmp_path)
    found = json.loads((folder / "split.json").read_text())
    written = contents(folder)
    del written["split.json"]
    assert found["files"].keys() == written.keys()
    for name, data in written.items():
        assert found["files"][name]["sha256"] == hashlib.sha256(data).hexdigest()
        assert found["files"][name]["rows"] == len(data.decode().splitlines())
    sizes = {name: part["sentences"] for name, part in found["parts"].items()}
    assert sizes == {name: len(part) for name, part in parts.items()}
    assert found["ceiling"] == prepare.ceiling(parts["test"])
    assert found["source"]["sha256"] == assets.RATINGS.sha256


def test_the_trainer_reads_what_is_written(tmp_path: Path, files: Files):
    folder = prepare.prepare(tmp_path)
    read = read_demonstrations(folder / "demonstrations.jsonl")
    pairs = [{"prompt": each.context.text, "completion": each.completion} for each in read]
    assert pairs == files["demonstrations"]
    for name in RANKINGS:
        ranks = [list(each.ranks) for each in read_rankings(folder / f"{name}.jsonl")]
        assert ranks == [row["ranks"] for row in files[name]]
    for name in ("prompts", "prompts_tuning", "prompts_final"):
        assert len(read_prompts(folder / f"{name}.jsonl")) == len(files[name])
