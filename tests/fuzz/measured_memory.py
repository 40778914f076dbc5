"""How much memory this process has at most while something runs. Linux only, as the servers are."""

import contextlib
import re
from pathlib import Path

PER_BYTE, BESIDES = 256, 64 << 20
"""Bytes that one byte of input may cost (JSON's smallest values become objects of 56), and bytes beside."""
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


def peak():
    """Most resident bytes since the last reset."""
    return int(_PEAK.search(Path("/proc/self/status").read_text())[1]) << 10


def reset_peak():
    with contextlib.suppress(OSError):  # where that isn't allowed, only a peak above the former one is seen
        Path("/proc/self/clear_refs").write_text("5")


@contextlib.contextmanager
def bounded_memory(size):
    """Fails if what is done with `size` bytes of input takes more memory than they are worth."""
    reset_peak()
    before = peak()
    yield
    taken = peak() - before
    assert taken <= PER_BYTE * size + BESIDES, f"{size:,} bytes of input took {taken:,} of memory"
