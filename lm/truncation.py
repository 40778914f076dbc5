"""Texts that are longer than a model reads, cut to its length."""

from collections.abc import Sequence

from lm.tokenizer import Tokens


def cut(tokens: Tokens, limit: int, side: str) -> Tokens:
    """`tokens` with at most `limit` ids; `side` is where texts lose theirs, "left" or "right".

    Special tokens stay. Of a pair the longer text is cut first, until both are equally long, as
    transformers' "longest_first" does.
    """
    segments = tokens.segments
    places = [[at for at, segment in enumerate(segments) if segment == text] for text in (0, 1)]
    room = max(0, limit - segments.count(None))
    counts = _longest_first([len(place) for place in places], room)
    kept = {at for at, segment in enumerate(segments) if segment is None}
    for place, count in zip(places, counts, strict=True):
        kept.update(place[len(place) - count :] if side == "left" else place[:count])
    return _at(tokens, sorted(kept))


def _at(tokens: Tokens, places: Sequence[int]) -> Tokens:
    return Tokens(
        [tokens.ids[at] for at in places],
        [tokens.segments[at] for at in places],
        None if tokens.type_ids is None else [tokens.type_ids[at] for at in places],
    )


def _longest_first(lengths: list[int], room: int) -> list[int]:
    """How many ids of the two texts are kept; of an odd room the longer text has one more."""
    shorter = min(min(lengths), room // 2)
    longer = min(max(lengths), room - shorter)
    return [shorter, longer] if lengths[0] <= lengths[1] else [longer, shorter]
