"""`plaudit rank` and `plaudit compare`, and the one-pair form of `plaudit score`."""

import io
import json
import math
import sys

import pytest
from toy_reward import ToyEnsemble, serving

ANSWERS = ["one", "two words", "three more words"]


@pytest.fixture
def ask(run, toy):
    """ask("rank", …) → (exit code, stdout, stderr), with the toy's address."""
    return lambda command, *arguments: run(command, *arguments, "--address", toy.address)


def by_reward(toy, answers=ANSWERS):
    return sorted(range(len(answers)), key=lambda index: -toy.raw(f"p {answers[index]}"))


def test_rank(ask, toy):
    code, out, err = ask("rank", "p", *ANSWERS)
    assert (code, err) == (0, "")
    places = [out.index(ANSWERS[index]) for index in by_reward(toy)]
    assert places == sorted(places)


def test_rank_as_json(ask, toy):
    code, out, _ = ask("rank", "p", *ANSWERS, "--json")
    answer = json.loads(out)
    assert code == 0
    assert [each["index"] for each in answer["ranked"]] == by_reward(toy)
    assert [each["rank"] for each in answer["ranked"]] == [1, 2, 3]
    assert answer["ranked"][0]["reward"]["raw_reward"] == pytest.approx(
        toy.raw(f"p {ANSWERS[by_reward(toy)[0]]}"), abs=1e-6
    )
    assert (answer["unranked"], answer["model"]["model_id"]) == ([], "toy")


def test_top_n(ask, toy):
    ranked = json.loads(ask("rank", "p", *ANSWERS, "--top-n", "1", "--json")[1])["ranked"]
    assert [each["index"] for each in ranked] == by_reward(toy)[:1]
    assert ask("rank", "p", *ANSWERS, "--top-n", "0")[0] == 64


def test_a_bad_candidate_is_told_apart(ask):
    code, out, _ = ask("rank", "p", "one", "", "--json")
    answer = json.loads(out)
    assert (code, [each["index"] for each in answer["ranked"]]) == (65, [0])
    assert answer["unranked"][0]["failure"]["violations"][0]["field"] == "candidates[1]"
    code, out, _ = ask("rank", "p", "one", "")
    assert (code, "candidates[1]: is empty" in out) == (65, True)


def test_candidates_from_a_file(ask, files, toy):
    (files / "answers.txt").write_text("\n".join(ANSWERS) + "\n\n")
    (files / "answers.jsonl").write_text("".join(json.dumps({"response": text}) + "\n" for text in ANSWERS))
    for name in ("answers.txt", "answers.jsonl"):
        ranked = json.loads(ask("rank", "p", "--from", name, "--json")[1])["ranked"]
        assert [each["index"] for each in ranked] == by_reward(toy)


def test_candidates_from_stdin(ask, toy, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(ANSWERS[1:])))
    ranked = json.loads(ask("rank", "p", ANSWERS[0], "--from", "-", "--json")[1])["ranked"]
    assert [each["index"] for each in ranked] == by_reward(toy)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"answer": "x"}', "line 2: has no text in response"),
        ("{", "line 2: is no JSON"),
        ('{"response": 5}', "line 2"),
    ],
)
def test_a_file_without_responses(ask, files, line, words):
    (files / "answers.jsonl").write_text(f'{{"response": "x"}}\n{line}\n')
    code, out, err = ask("rank", "p", "--from", "answers.jsonl")
    assert (code, out, words in err) == (64, "", True)


def test_a_file_that_is_not_there(ask):
    code, _, err = ask("rank", "p", "--from", "none.txt")
    assert (code, "none.txt" in err, err.count("\n")) == (64, True, 1)


def test_a_file_that_is_no_text(ask, files):
    (files / "answers.txt").write_bytes(b"\xff\n")
    code, _, err = ask("rank", "p", "--from", "answers.txt")
    assert (code, "answers.txt: can't be read" in err) == (64, True)


def test_no_candidates(ask):
    code, _, err = ask("rank", "p")
    assert (code, "candidates: is empty" in err) == (64, True)


def test_brackets_in_a_response_are_text(ask):
    assert "[red]none[/red]" in ask("rank", "p", "[red]none[/red]")[1]


def test_compare(ask, toy):
    code, out, _ = ask("compare", "p", *ANSWERS[:2], "--json")
    answer = json.loads(out)
    gap = toy.raw("p one") - toy.raw("p two words")
    assert code == 0
    assert answer["probability"] == pytest.approx(1 / (1 + math.exp(-gap)), abs=1e-6)
    assert (answer["temperature"], answer["first"]["token_count"]) == (1.0, 2)


def test_compare_at_a_temperature(ask, toy):
    answer = json.loads(ask("compare", "p", *ANSWERS[:2], "--temperature", "4", "--json")[1])
    gap = toy.raw("p one") - toy.raw("p two words")
    assert answer["probability"] == pytest.approx(1 / (1 + math.exp(-gap / 4)), abs=1e-6)


def test_compare_for_people(ask, toy):
    _, out, _ = ask("compare", "p", *ANSWERS[:2])
    probability = 1 / (1 + math.exp(toy.raw("p two words") - toy.raw("p one")))
    for words in (f"{probability:.1%}", f"{1 - probability:.1%}", *ANSWERS[:2], "temperature 1"):
        assert words in out


@pytest.mark.parametrize("temperature", ["0", "-2"])
def test_compare_at_no_temperature(ask, temperature):
    code, _, err = ask("compare", "p", "a", "b", f"--temperature={temperature}")
    assert (code, "temperature: isn't above 0" in err) == (64, True)


def test_parts_are_shown_if_asked(run):
    with serving(ToyEnsemble()) as address:
        for command in (("rank", "p", "a"), ("compare", "p", "a", "b"), ("score", "p", "a")):
            asked = run(*command, "--components", "--address", address)[1]
            unasked = run(*command, "--address", address)[1]
            assert ("left" in asked, "left" in unasked) == (True, False)


def test_a_model_that_is_not_there(ask):
    for command in (("rank", "p", "a"), ("compare", "p", "a", "b"), ("score", "p", "a")):
        code, out, err = ask(*command, "--model", "other")
        assert (code, out, err.count("\n")) == (64, "", 1)


def test_score_of_one_pair(ask, toy):
    code, out, err = ask("score", "p", "one")
    assert (code, err) == (0, "")
    assert float(out) == pytest.approx((toy.raw("p one") - 0.5) / 2, abs=1e-5)


def test_score_of_one_chat(ask, toy):
    answer = json.loads(ask("score", "p", "one", "--chat", "--json")[1])
    assert answer["raw_reward"] == pytest.approx(toy.raw("user p assistant one"), abs=1e-6)


def test_a_file_of_that_name_is_no_file_beside_a_response(ask, files, toy):
    (files / "p").write_text("a file")
    assert float(ask("score", "p", "one")[1]) == pytest.approx((toy.raw("p one") - 0.5) / 2, abs=1e-5)
