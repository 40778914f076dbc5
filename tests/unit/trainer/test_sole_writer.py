"""Two trainers on one run's folder: the second is told who was first, however that one ends."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from test_trainer_disk import no_file_above

from trainer import __main__ as command
from trainer.config import RunOptions, RunSection
from trainer.errors import DiskUnusable, RunHeld
from trainer.sole_writer import FILE_NAME, sole_writer

ME = f"process {os.getpid()} on {socket.gethostname()}"
OPTIONS = RunOptions()
MODEL, SERVICES = '[model]\npath = "m"\n', 'policy = ["h:1"]\nreward = "h:2"\nreference = "h:3"\n'
STAGES = {
    "sft": MODEL + '[data]\ntrain = "t.jsonl"\n',
    "reward-model": MODEL + '[data]\ntrain = "t.jsonl"\n',
    "ppo": f'{MODEL}[critic]\npath = "c"\n[services]\n{SERVICES}[data]\nprompts = "p.jsonl"\n'
    "[ppo]\ntotal_episodes = 64\n",
    "evaluate": '[a]\npath = "a"\n[b]\npath = "b"\n[data]\nprompts = "p.jsonl"\n'
    "[sampling]\nresponse_length = 4\n",
}
HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.write("process 7 on another")
file.flush()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def section(tmp_path: Path) -> RunSection:
    return RunSection(name="r", directory=tmp_path, disk_patience=0.0)


def test_the_second_is_told_who_was_first_until_that_one_is_done(section: RunSection):
    with sole_writer(section, OPTIONS):
        with pytest.raises(RunHeld) as caught, sole_writer(section, OPTIONS):
            pytest.fail("two at once")
        assert str(caught.value).startswith(f"{section.folder} is written to by {ME}; wait for its end")
        assert (section.folder / FILE_NAME).read_text() == ME, "the second leaves no trace"
    with sole_writer(section, OPTIONS):
        pass


def test_an_error_lets_go(section: RunSection):
    with pytest.raises(KeyboardInterrupt), sole_writer(section, OPTIONS):
        raise KeyboardInterrupt
    with sole_writer(section, OPTIONS):
        pass


def test_kill_9_lets_go(section: RunSection):
    section.folder.mkdir()
    path = str(section.folder / FILE_NAME)
    with subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(RunHeld, match="process 7 on another"), sole_writer(section, OPTIONS):
            pytest.fail("two at once")
        holder.kill()
        holder.wait()
    with sole_writer(section, OPTIONS):
        assert Path(path).read_text() == ME


def test_a_child_of_the_trainer_does_not_keep_the_lock(section: RunSection):
    """One that outlives it, such as a tracker's, would."""
    with sole_writer(section, OPTIONS):
        child = subprocess.Popen(["sleep", "60"])
    try:
        with sole_writer(section, OPTIONS):
            pass
    finally:
        child.kill()
        child.wait()


def test_whoever_has_not_yet_said_its_name(section: RunSection):
    section.folder.mkdir()
    with (section.folder / FILE_NAME).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunHeld, match="a process that has just begun"), sole_writer(section, OPTIONS):
            pytest.fail("two at once")


def test_a_dry_run_beside_it_is_welcome_and_writes_nothing(section: RunSection):
    with sole_writer(section, RunOptions(dry_run=True)):
        assert not section.folder.exists()
    with sole_writer(section, OPTIONS), sole_writer(section, RunOptions(dry_run=True)):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_volume_without_locks_is_warned_of_and_a_broken_one_is_no_such(
    section: RunSection, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    if number == errno.EIO:
        with pytest.raises(DiskUnusable, match="Input/output error"), sole_writer(section, OPTIONS):
            pytest.fail("not held")
    else:
        with sole_writer(section, OPTIONS):
            assert "nothing keeps a second trainer away" in caplog.text


def test_a_full_disk_is_waited_for_as_everywhere(section: RunSection):
    with (
        no_file_above(1),
        pytest.raises(DiskUnusable, match=r"\.lock can't be written"),
        sole_writer(section, OPTIONS),
    ):
        pytest.fail("not held")
    with sole_writer(section, OPTIONS):
        pass


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_ends_with_one_line_and_75(
    stage: str, section: RunSection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / f"{stage}.toml"
    path.write_text(f'[run]\nname = "r"\ndirectory = "{tmp_path}"\n{STAGES[stage]}')
    with sole_writer(section, OPTIONS):
        assert command.main([stage, str(path), *(["--resume"] if stage != "evaluate" else [])]) == 75
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{section.folder} is written to by {ME}")
    assert [each.name for each in section.folder.iterdir()] == [FILE_NAME], "nothing was touched"
