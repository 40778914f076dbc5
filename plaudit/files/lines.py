"""Lines of a file; and of a pipe, whose reader can do something else while none comes."""

import os
import select
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias

MAX_LINE = 64 << 20
"""Bytes of a line that are read: no call may carry more."""
POLL_S = 0.05
CHUNK = 1 << 16

Line: TypeAlias = tuple[bytes, int]
"""A line and its length in bytes; of one that is longer than MAX_LINE only the beginning."""


def lines_of(path: Path) -> Iterator[Line]:
    """All lines of a file."""
    with path.open("rb") as file:
        while raw := file.readline(MAX_LINE + 1):
            length, last = len(raw), raw
            while len(last) > MAX_LINE and not last.endswith(b"\n"):
                last = file.readline(MAX_LINE + 1)
                length += len(last)
            yield raw, length


def lines_as_they_come(file: BinaryIO) -> Iterator[Line | None]:
    """All lines of an open file that nobody has read from; None every POLL_S, and after all that came."""
    begun, length = bytearray(), 0
    while True:
        if not select.select([file], [], [], POLL_S)[0]:
            yield None
            continue
        chunk = os.read(file.fileno(), CHUNK)
        if not chunk:
            break
        for piece in _pieces(chunk):
            begun += piece[: MAX_LINE + 1 - len(begun)]
            length += len(piece)
            if piece.endswith(b"\n"):
                yield bytes(begun), length
                begun, length = bytearray(), 0
        yield None
    if length:
        yield bytes(begun), length


def _pieces(chunk: bytes) -> Iterator[bytes]:
    """What each line has of `chunk`, with its line break."""
    *whole, rest = chunk.split(b"\n")
    yield from (piece + b"\n" for piece in whole)
    if rest:
        yield rest
