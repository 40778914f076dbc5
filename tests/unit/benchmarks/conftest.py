"""Sentences and a model small enough for a benchmark in a test."""

import json

import pytest

SENTENCES = [
    "A film of quiet wonder and real charm.",
    "Dull.",
    "The actors try, and the script does not help them.",
    "What a joy from start to finish, and what an end it has!",
    "It never finds its feet.",
    "Go and see it with somebody you like.",
]


@pytest.fixture(scope="session")
def sentences_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("film-reviews")
    lines = [json.dumps({"text": sentence, "score": 0.5}) for sentence in SENTENCES]
    (folder / "judge_train.jsonl").write_text("\n".join(lines[:4]) + "\n", encoding="utf-8")
    (folder / "judge_test.jsonl").write_text("\n".join(lines[4:]) + "\n", encoding="utf-8")
    return folder
