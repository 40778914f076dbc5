"""What is scored: film-review texts of mixed lengths, the same for every contestant; no torch here."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SENTENCES = ("judge_train.jsonl", "judge_test.jsonl")
"""The quickstart's files of single sentences, each a line {"text": …}."""
MEDIAN_WORDS, SPREAD = 20, 0.7
FEWEST_WORDS, MOST_WORDS = 6, 150
"""Lengths are log-normal between these bounds: most texts are a sentence or two, a few a page."""
PROMPT_WORDS = (2, 5)
TRIES = 20
"""Texts drawn for each that is wanted, at most."""


class WorkloadError(Exception):
    """The texts can't be had, or don't fit the model; the message says what to do."""


@dataclass(frozen=True)
class Text:
    """A text in each form that a contestant wants it in; all come to the same ids."""

    prompt: str
    response: str
    ids: tuple[int, ...]
    """What the model reads, its end token included."""
    whole: str
    """The ids decoded with their special tokens."""
    plain: str
    """The text whose ids by the tokenizer's plain call are `ids`: `whole`, less what that call adds."""


Read = Callable[[str, str], Text | None]
"""(prompt, response) → the text; None where its forms don't come to the same ids, or the model can't."""


def read_sentences(folder: Path) -> list[str]:
    """All sentences of the quickstart's prepared data. Raises WorkloadError if there are none."""
    found: list[str] = []
    for path in (folder / name for name in SENTENCES):
        if path.is_file():
            found += [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    if not found:
        raise WorkloadError(f"{folder} has no {SENTENCES[0]}; `make run` prepares it")
    return found


def draw_pairs(sentences: Sequence[str], seed: int) -> Iterator[tuple[str, str]]:
    """(prompt, response) without end, each once: sentences one after the other, cut at a drawn length."""
    generator = random.Random(seed)
    seen: set[tuple[str, str]] = set()
    while True:
        drawn = generator.lognormvariate(0.0, SPREAD) * MEDIAN_WORDS
        count = round(min(max(drawn, FEWEST_WORDS), MOST_WORDS))
        words: list[str] = []
        while len(words) < count:
            words += generator.choice(sentences).split()
        cut = generator.randint(*PROMPT_WORDS)
        pair = " ".join(words[:cut]), " " + " ".join(words[cut:count])
        if pair not in seen:
            seen.add(pair)
            yield pair


def make_texts(sentences: Sequence[str], count: int, seed: int, read: Read) -> list[Text]:
    """`count` texts that every contestant can read. Raises WorkloadError where too few can be had."""
    texts: list[Text] = []
    for tried, pair in enumerate(draw_pairs(sentences, seed)):
        if len(texts) == count:
            return texts
        if tried == TRIES * count:
            raise WorkloadError(
                f"of {tried} texts only {len(texts)} have the same ids in every form; take a decoder whose "
                "tokenizer gives back what it decodes"
            )
        text = read(*pair)
        if text is not None:
            texts.append(text)
    return texts


def marked(pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The pairs again and again, never one twice: equal ones in flight would be computed once."""
    lap = 0
    while True:
        lap += 1
        for prompt, response in pairs:
            yield prompt, f"{response} {lap}"
