"""Measures of a set of responses that need no judge."""

from collections.abc import Sequence
from itertools import chain


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams ÷ n-grams, over the words of all texts together (Li et al. 2016).

    Words are split at white space and lower-cased, so that policies with different tokenizers compare.
    0 where no text has n words. More text lowers the number: compare equally many responses.
    """
    grams = list(chain.from_iterable(_grams(text.lower().split(), n) for text in texts))
    return len(set(grams)) / len(grams) if grams else 0.0


def _grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def entropy_per_token(logprobs: Sequence[Sequence[float]]) -> float:
    """Mean of −log π over all sampled tokens, in nats: a sample estimate of the policy's entropy."""
    tokens = list(chain.from_iterable(logprobs))
    return -sum(tokens) / len(tokens) if tokens else 0.0
