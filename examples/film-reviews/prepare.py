"""Turns the film-review ratings of Hutto & Gilbert (2014) into the product's own data formats.

Sentences of at most 24 words are split once, by a hash of their text, so for every seed alike:

| part | share | what it is for |
|---|---|---|
| train | 45 % | demonstrations, rankings by rater half A, PPO prompts |
| judge | 35 % | the held-out judge, by rater half B |
| tuning | 6 % | picking settings: prompts, rankings by half A |
| test | 14 % | what is reported: prompts, rankings by half A and by half B |

The ratings are anonymous. In each batch of 30 sentences one column is one person (residuals of the same
column correlate at 0.76 between the halves of a batch) and across batches columns are unrelated. Half A is
the even columns, half B the odd ones: of any sentence no rating, and of any batch no person, is in both.
Whether somebody rated two batches, once in an even and once in an odd column, can't be known.
"""

import hashlib
import html
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import assets

CITATION = (
    "Hutto, C.J. & Gilbert, E.E. (2014). VADER: A Parsimonious Rule-based Model for Sentiment Analysis of "
    "Social Media Text. Eighth International Conference on Weblogs and Social Media (ICWSM-14)."
)
CEILING = (
    "How often rater half B orders a pair of test sentences as half A does, over the pairs within rankings "
    "that half A does not tie; a tie of half B counts one half."
)
MAX_WORDS = 24
PARTS = (("train", 0.45), ("judge", 0.80), ("tuning", 0.86), ("test", 1.0))  # upper bounds of the hash
PROMPT_WORDS = (2, 5)
COMPLETION_WORDS = 3  # at least so many words are left to say
RANKING_SIZES = (4, 9)
VALIDATION_DEMONSTRATIONS = 200
DEMONSTRATIONS = 1400
EVALUATION_PROMPTS = 256

Row = dict[str, Any]


@dataclass(frozen=True)
class Sentence:
    """One rated sentence."""

    text: str
    mean_a: Fraction
    """Mean rating, −4 to 4, by rater half A."""
    mean_b: Fraction
    """The same by half B."""


def normalise(text: str) -> str:
    """Undoes what the collection's preprocessing did to the typography; words are left alone.

    HTML entities are decoded; ''…'' and `…' become plain quotes; a run of spaces, left where a double
    hyphen stood, becomes " - "; spaces before punctuation and inside brackets go, but an ellipsis that stands
    alone stays; quotes around the whole sentence go.
    """
    text = html.unescape(text).strip().replace("’", "'").replace("`", "'").replace("''", '"')
    text = re.sub(r"\s{2,}(?=[,.;:!?)])", "", text)
    text = re.sub(r"\s{2,}", " - ", text)
    text = re.sub(r"\s+(?=[,;:!?)]|\.(?!\.))", "", text)
    text = re.sub(r"(?<=\()\s+", "", text)
    return _without_outer_quotes(text)


def _without_outer_quotes(text: str) -> str:
    for quote in "\"'":
        marks = re.findall(rf"(?<!\w){quote}|{quote}(?!\w)", text)  # not the apostrophes within words
        if len(marks) == 2 and text[0] == text[-1] == quote:
            return text[1:-1].strip()
    return text


def read_sentences(sentences: str, ratings: str) -> list[Sentence]:
    """The rated sentences of at most MAX_WORDS words, from the text of the collection's two files.

    Raises ValueError where the two don't belong together.
    """
    found = []
    for line, rated in zip(sentences.splitlines(), ratings.splitlines(), strict=True):
        identifier, _, text = line.split("\t")
        rated_identifier, _, _, values = rated.split("\t")
        if identifier != rated_identifier:
            raise ValueError(f"sentence {identifier} stands beside the ratings of {rated_identifier}")
        text = normalise(text)
        if len(text.split()) <= MAX_WORDS:
            scores: list[int] = json.loads(values)
            found.append(Sentence(text, _mean(scores[0::2]), _mean(scores[1::2])))
    return found


def _mean(scores: Sequence[int]) -> Fraction:
    return Fraction(sum(scores), len(scores))


def fraction_of(purpose: str, text: str) -> float:
    """A number in [0, 1) that depends on the purpose and the text alone."""
    digest = hashlib.blake2b(f"{purpose}:{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def shuffled(sentences: Iterable[Sentence], purpose: str) -> list[Sentence]:
    """The sentences in the order of their hash."""
    return sorted(sentences, key=lambda sentence: (fraction_of(purpose, sentence.text), sentence.text))


def split(sentences: Iterable[Sentence]) -> dict[str, list[Sentence]]:
    """Sentences by part; the same text always lands in the same part."""
    parts: dict[str, list[Sentence]] = {name: [] for name, _ in PARTS}
    for sentence in shuffled(sentences, "order"):
        place = fraction_of("split", sentence.text.lower())
        parts[next(name for name, bound in PARTS if place < bound)].append(sentence)
    return parts


def opening(text: str) -> tuple[str, str] | None:
    """(prompt, completion): the first 2–5 words, how many by hash, and the rest with its leading space.

    None for a sentence too short to be cut, or one that starts with a bracket, a quote or an ellipsis.
    Cut before a space, a byte-level tokenizer gives the same ids to the parts as to the whole.
    """
    words = text.split()
    low, high = PROMPT_WORDS
    high = min(high, len(words) - COMPLETION_WORDS)
    if high < low or not text[0].isalnum():
        return None
    count = low + int(fraction_of("prompt", text) * (high - low + 1))
    prompt = " ".join(words[:count])
    return prompt, text[len(prompt) :]


def groups(sentences: Sequence[Sentence]) -> list[list[Sentence]]:
    """Consecutive groups of 4–9, sizes by hash; up to three sentences at the end are left over."""
    low, high = RANKING_SIZES
    found = []
    start = 0
    while len(sentences) - start >= low:
        size = low + int(fraction_of("size", sentences[start].text) * (high - low + 1))
        found.append(list(sentences[start : start + size]))
        start += size
    return found


def dense_ranks(means: Sequence[Fraction]) -> list[int]:
    """1 for the highest mean; equal means share a rank and the next one follows without a gap."""
    order = {mean: rank for rank, mean in enumerate(sorted(set(means), reverse=True), start=1)}
    return [order[mean] for mean in means]


def rankings(sentences: Sequence[Sentence], half: str) -> list[Row]:
    """K-way rankings of whole sentences by the mean of one rater half, `a` or `b`.

    The prompt is empty: a reward model in PPO reads prompt and response as one sequence, which here is
    a whole sentence.
    """
    rows = []
    for group in groups(sentences):
        means = [sentence.mean_a if half == "a" else sentence.mean_b for sentence in group]
        completions = [sentence.text for sentence in group]
        rows.append(
            {"prompt": "", "completions": completions, "ranks": dense_ranks(means), "labeler": f"half-{half}"}
        )
    return rows


def ceiling(sentences: Sequence[Sentence]) -> Row:
    """The human ceiling of pair accuracy; see CEILING."""
    agreed, pairs = Fraction(0), 0
    for group in groups(sentences):
        for left, right in combinations(group, 2):
            by_a, by_b = left.mean_a - right.mean_a, left.mean_b - right.mean_b
            if by_a:
                pairs += 1
                agreed += Fraction(1, 2) if not by_b else int((by_a > 0) == (by_b > 0))
    return {"pair_accuracy": round(float(agreed / pairs), 4), "pairs": pairs, "definition": CEILING}


def prompt_rows(sentences: Iterable[Sentence], taken: set[str]) -> list[Row]:
    """The openings of the sentences that have one, but none that is in `taken`, which grows by them."""
    rows = []
    for sentence in sentences:
        pair = opening(sentence.text)
        if pair and pair[0] not in taken:
            taken.add(pair[0])
            rows.append({"prompt": pair[0]})
    return rows


def files(parts: dict[str, list[Sentence]]) -> dict[str, list[Row]]:
    """Every data file's rows. No prompt occurs twice: the test's come first, then the tuning ones.

    PPO's prompts come from sentences that SFT did not see.
    """
    cut = VALIDATION_DEMONSTRATIONS + DEMONSTRATIONS
    pairs = [pair for sentence in parts["train"] if (pair := opening(sentence.text))]
    demonstrations = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs[:cut]]
    taken: set[str] = set()
    # The first so many were looked at while kl_coef was picked: what is reported rests on the next ones.
    final = prompt_rows(parts["test"], taken)[EVALUATION_PROMPTS : 2 * EVALUATION_PROMPTS]
    tuning = prompt_rows(parts["tuning"], taken)[:EVALUATION_PROMPTS]
    demonstrated = {prompt + completion for prompt, completion in pairs[:cut]}
    fresh = [sentence for sentence in parts["train"] if sentence.text not in demonstrated]
    return {
        "demonstrations.jsonl": demonstrations[VALIDATION_DEMONSTRATIONS:],
        "demonstrations_validation.jsonl": demonstrations[:VALIDATION_DEMONSTRATIONS],
        "rankings.jsonl": rankings(parts["train"], "a"),
        "rankings_tuning.jsonl": rankings(parts["tuning"], "a"),
        "rankings_heldout.jsonl": rankings(parts["test"], "a"),
        "rankings_heldout_labelers.jsonl": rankings(parts["test"], "b"),
        "judge_train.jsonl": judge_rows(parts["judge"]),
        "judge_test.jsonl": judge_rows(parts["test"]),
        "prompts.jsonl": prompt_rows(fresh, taken),
        "prompts_tuning.jsonl": tuning,
        "prompts_final.jsonl": final,
    }


def judge_rows(sentences: Iterable[Sentence]) -> list[Row]:
    """Each sentence with its mean rating by half B."""
    return [{"text": sentence.text, "score": round(float(sentence.mean_b), 6)} for sentence in sentences]


def summary(parts: dict[str, list[Sentence]], written: dict[str, bytes]) -> Row:
    """What `split.json` holds: where everything comes from and went, with digests."""
    texts = {name: "\n".join(sorted(s.text for s in sentences)) for name, sentences in parts.items()}
    return {
        "source": {"file": assets.RATINGS.file, "sha256": assets.RATINGS.sha256, "citation": CITATION},
        "max_words": MAX_WORDS,
        "raters": {"a": "even columns", "b": "odd columns", "same_person": "one column within 30 sentences"},
        "parts": {
            name: {"sentences": len(parts[name]), "sha256": hashlib.sha256(text.encode()).hexdigest()}
            for name, text in texts.items()
        },
        "ceiling": ceiling(parts["test"]),
        "files": {
            name: {"rows": data.count(b"\n"), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in written.items()
        },
    }


def prepare(cache: Path) -> Path:
    """Writes the data files and `split.json` into `cache`/film-reviews and returns that folder.

    The same bytes each time; a file that already holds them is left alone.
    """
    parts = split(read_sentences(*assets.ratings_files(cache)))
    written = {name: _jsonl(rows) for name, rows in files(parts).items()}
    written["split.json"] = (json.dumps(summary(parts, written), indent=2) + "\n").encode()
    folder = cache / "film-reviews"
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in written.items():
        _write(folder / name, data)
    return folder


def _jsonl(rows: Iterable[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _write(path: Path, data: bytes) -> None:
    if path.exists() and path.read_bytes() == data:
        return
    scratch = path.with_name(path.name + ".part")
    scratch.write_bytes(data)
    scratch.replace(path)
