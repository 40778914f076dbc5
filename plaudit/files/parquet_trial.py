"""Reads a whole Parquet file in a process that may take only so much memory, before anybody else reads it.

    python -m plaudit.files.parquet_trial FILE

What a file comes to isn't known from its footer, which may lie; and pyarrow can't be given a bound, but a
process can: by the kernel, on Linux. What kills a reader kills this one alone, too.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from plaudit.files.rows import FileError

MAX_MEMORY = 1 << 30
"""Bytes that reading may take beside the process itself; rows are read in batches of a sixteenth of that."""
STARTS_S, LEAST_BYTES_PER_S = 60.0, 1 << 20
"""How long it may take: a minute, and more by the file's size. Rows that take no room have no end else."""
_SIZE = Path("/proc/self/statm")
_REFUSED = 65
"""Exit code where the last line says why."""


def check_readable(path: Path) -> None:
    """Raises FileError for a file that can't be read, or, on Linux, not in MAX_MEMORY."""
    allowed_s = STARTS_S + path.stat().st_size / LEAST_BYTES_PER_S
    # -P: what is called plaudit in the folder that the caller stands in isn't meant.
    command = [sys.executable, "-P", "-m", __name__, str(path)]
    # Others reserve what they don't need.
    environment = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=allowed_s)
    except subprocess.TimeoutExpired:
        raise FileError(f"can't be read within {allowed_s:.0f} s; write it again as JSON lines") from None
    if done.returncode:
        raise FileError(_why(done))


def _why(done: "subprocess.CompletedProcess[str]") -> str:
    if done.returncode == _REFUSED:
        return done.stdout.rstrip("\n")
    if done.returncode < 0:
        return f"can't be read: who tries is ended by {signal.Signals(-done.returncode).name}"
    return f"can't be read: {(done.stderr.splitlines() or ['nothing is said'])[-1]}"


def _main(path: Path) -> int:
    from plaudit.files.parquet import read_through

    try:
        _bound_memory()
        read_through(path)
    except MemoryError:
        print(f"takes more than {MAX_MEMORY >> 20:,} MiB of memory to read; write it in smaller row groups")
        return _REFUSED
    except FileError as error:
        print(error)
        return _REFUSED
    return 0


def _bound_memory() -> None:
    if not _SIZE.exists():
        return
    import resource

    import pyarrow as pa

    pa.set_cpu_count(1)  # each thread's stack would count
    taken = int(_SIZE.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MAX_MEMORY, taken + MAX_MEMORY))


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1])))
