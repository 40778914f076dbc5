"""Standard output and error on a full disk: what is lost there changes neither run nor exit code."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.standard_streams import lossy

ENDS_WITH_3 = "import sys; from trainer.standard_streams import lossy; sys.stdout = lossy(sys.stdout); "


def test_what_is_lost_is_told_once(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    with pytest.raises(OSError, match="No space"), Path("/dev/full").open("w") as full:  # when it is closed
        stream = lossy(full)
        for _ in range(3):
            print("a line", file=stream, flush=True)
    assert caplog.messages == ["/dev/full can't be written: No space left on device; the run goes on"]


def test_a_stream_that_works_is_as_it_was(tmp_path: Path):
    with (tmp_path / "out").open("w") as file:
        stream = lossy(file)
        assert lossy(stream) is stream and stream.fileno() == file.fileno()
        print("a line", file=stream, flush=True)
    assert (tmp_path / "out").read_text() == "a line\n"


def test_a_stream_that_is_not_there_stays_away():
    assert lossy(None) is None


@pytest.mark.parametrize("more", ["print('x'); ", "print('x', flush=True); ", "print('x' * 100_000); "])
def test_the_exit_code_stays(more: str):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", f"{ENDS_WITH_3}{more}sys.exit(3)"], stdout=full, check=False, timeout=60
        )
    assert done.returncode == 3


def test_an_error_that_cannot_be_printed_keeps_its_code(tmp_path: Path):
    with Path("/dev/full").open("w") as full:
        arguments = [sys.executable, "-m", "trainer", "sft", str(tmp_path / "none.toml")]
        assert subprocess.run(arguments, stderr=full, check=False, timeout=60).returncode == 64
