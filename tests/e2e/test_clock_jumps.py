"""A wall clock that is set by an hour, ahead and back, changes nothing but what is meant by it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARIES = list(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
"""Debian's libfaketime."""
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif("PLAUDIT_CLOCK" not in os.environ, reason="libfaketime slows all; set PLAUDIT_CLOCK=1")
@pytest.mark.skipif(not LIBRARIES, reason="libfaketime isn't installed (Debian: apt install libfaketime)")
def test_clock_jumps(tmp_path: Path):
    jumps = tmp_path / "jumps"
    jumps.write_text("+0")
    environment = {
        "LD_PRELOAD": str(LIBRARIES[0]),
        "FAKETIME_TIMESTAMP_FILE": str(jumps),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/e2e/clock_jumps.py"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout
