"""A wall clock that is set by an hour, ahead and back, changes nothing but what is meant by it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARIES = list(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
"""Debian's libfaketime."""
ROOT = Path(__file__).parents[2]

installed = pytest.mark.skipif(
    not LIBRARIES, reason="libfaketime isn't installed (Debian: apt install libfaketime)"
)
asked_for = pytest.mark.skipif("PLAUDIT_CLOCK" not in os.environ, reason="half a minute; set PLAUDIT_CLOCK=1")


def passes(file, *options, **clock):
    """Runs tests by a clock that they can set: by FAKETIME, or a file that several processes look at."""
    environment = {
        "LD_PRELOAD": str(LIBRARIES[0]),
        **(clock or {"FAKETIME": "+0"}),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "PYTHONPATH": str(ROOT / "tests"),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, f"tests/e2e/{file}"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout


@installed
def test_clock_jumps():
    passes("clock_jumps.py", "--noconftest")  # which imports torch


@installed
@asked_for
@pytest.mark.slow
def test_clock_jumps_in_a_push():
    passes("clock_jumps_push.py")


@installed
@pytest.mark.slow
def test_clock_jumps_in_a_run(tmp_path):
    clock = tmp_path / "clock"
    clock.write_text("+0\n", encoding="utf-8")
    passes("clock_jumps_run.py", FAKETIME_TIMESTAMP_FILE=str(clock))
