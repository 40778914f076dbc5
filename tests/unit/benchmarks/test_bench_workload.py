"""The texts: the same for one seed, of mixed lengths, none twice, and only such as everybody reads alike."""

from itertools import islice
from statistics import median

import pytest

from benchmarks.workload import (
    FEWEST_WORDS,
    MEDIAN_WORDS,
    MOST_WORDS,
    PROMPT_WORDS,
    TRIES,
    Text,
    WorkloadError,
    draw_pairs,
    make_texts,
    marked,
    read_sentences,
)

WORDS = [f"one{n} two{n} three{n}" for n in range(300)]


def text(prompt, response):
    return Text(prompt, response, (1, 2), prompt + response + "<end>", prompt + response)


def draw(count, seed=0):
    return list(islice(draw_pairs(WORDS, seed), count))


class TestSentences:
    def test_both_files_are_read(self, sentences_folder):
        found = read_sentences(sentences_folder)
        assert len(found) == 6
        assert found[1] == "Dull."

    def test_one_file_is_enough(self, tmp_path):
        (tmp_path / "judge_test.jsonl").write_text('{"text": "Fine."}\n', encoding="utf-8")
        assert read_sentences(tmp_path) == ["Fine."]

    def test_without_any_it_says_who_makes_them(self, tmp_path):
        with pytest.raises(WorkloadError, match="make run"):
            read_sentences(tmp_path / "nowhere")


class TestPairs:
    def test_one_seed_gives_the_same_pairs_and_another_others(self):
        assert draw(50) == draw(50)
        assert draw(50) != draw(50, seed=1)

    def test_none_is_there_twice(self):
        assert len(set(draw(500))) == 500

    def test_a_pair_joins_to_whole_words_with_one_space_between(self):
        known = {word for sentence in WORDS for word in sentence.split()}
        for prompt, response in draw(100):
            assert response.startswith(" ")
            assert set((prompt + response).split(" ")) <= known

    def test_prompts_are_a_few_words(self):
        counts = {len(prompt.split()) for prompt, _ in draw(200)}
        assert counts == set(range(PROMPT_WORDS[0], PROMPT_WORDS[1] + 1))

    def test_lengths_have_the_stated_median_bounds_and_a_long_tail(self):
        lengths = [len((prompt + response).split()) for prompt, response in draw(2000)]
        assert min(lengths) >= FEWEST_WORDS
        assert max(lengths) <= MOST_WORDS
        assert median(lengths) == pytest.approx(MEDIAN_WORDS, rel=0.1)
        assert 0.01 < sum(length > 4 * MEDIAN_WORDS for length in lengths) / len(lengths) < 0.07


class TestTexts:
    def test_as_many_as_are_wanted(self):
        texts = make_texts(WORDS, 20, 0, text)
        assert [(each.prompt, each.response) for each in texts] == draw(20)

    def test_those_that_cant_be_read_alike_are_left_out(self):
        odd = set(draw(40)[::2])
        texts = make_texts(WORDS, 20, 0, lambda *pair: None if pair in odd else text(*pair))
        assert [(each.prompt, each.response) for each in texts] == draw(40)[1::2]

    def test_a_model_that_reads_none_ends_it_after_a_bounded_number(self):
        tried = []
        with pytest.raises(WorkloadError, match=f"of {3 * TRIES} texts only 0"):
            make_texts(WORDS, 3, 0, lambda *pair: tried.append(pair))
        assert len(tried) == 3 * TRIES


def test_marked_pairs_never_come_twice():
    pairs = draw(7)
    laps = list(islice(marked(pairs), 21))
    assert len(set(laps)) == 21
    assert laps[0] == (pairs[0][0], pairs[0][1] + " 1")
    assert laps[7] == (pairs[0][0], pairs[0][1] + " 2")
