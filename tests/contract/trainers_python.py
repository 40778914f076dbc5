"""A Python of its own for the trainers that don't fit beside ours: verl and OpenRLHF, as released."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("PLAUDIT_TRAINERS_PYTHON", ROOT / "build/trainers/bin/python"))

needs_trainers = pytest.mark.skipif(
    not PYTHON.exists(),
    reason="verl and OpenRLHF aren't installed; make trainers, then they are tested for real",
)


def run(script, *arguments, **environment):
    """What a script of this folder prints in that Python, read as JSON."""
    done = subprocess.run(
        [str(PYTHON), str(Path(__file__).with_name(script)), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=550,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
