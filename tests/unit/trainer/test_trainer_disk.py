"""A disk that refuses, for real: /dev/full, a limit on the size of files, a volume of one megabyte."""

import contextlib
import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from counting_stage import Stage, saved

from lm.loading import load_causal_lm
from lm.placement import choose_placement
from trainer import checkpoints
from trainer.disk import CURES, FIRST_WAIT_S, LONGEST_WAIT_S, Disk
from trainer.errors import DiskUnusable
from trainer.metrics import RunMetrics
from trainer.metrics_file import read_lines
from trainer.outputs import copy_folder, export_model
from trainer.stopping import StopSignal


class Meanwhile(StopSignal):
    """Where a run would sleep, does something instead: at the n-th time, if `at` is given."""

    def __init__(self, act: Callable[[], object], at: int = 1) -> None:
        super().__init__()
        self.waits: list[float] = []
        self._act, self._at = act, at

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        if len(self.waits) == self._at:
            self._act()
        return self.requested


def limit_files(size: int) -> None:
    """Of this process, in bytes: writing more is EFBIG."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[Callable[[], None]]:
    """Gives what lifts the limit early."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    lift = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, former)  # noqa: E731
    limit_files(size)
    try:
        yield lift
    finally:
        lift()


def to_full_device() -> None:
    with Path("/dev/full").open("w") as device:
        device.write("x")


def refuses(number: int) -> Callable[[], None]:
    def act() -> None:
        raise OSError(number, os.strerror(number))

    return act


def test_it_writes_again_until_it_can(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    stop = Meanwhile(lambda: None)
    disk = Disk(60.0, tmp_path, stop)

    def act() -> str:
        if len(stop.waits) < 9:
            to_full_device()
        return "done"

    assert disk.write(tmp_path / "new" / "file", 5 << 20, act) == "done"
    assert stop.waits[:3] == [FIRST_WAIT_S, 2 * FIRST_WAIT_S, 4 * FIRST_WAIT_S]
    assert max(stop.waits) == LONGEST_WAIT_S
    told = caplog.messages[0]
    assert f"{tmp_path}/new/file can't be written: No space left on device, 5.0 MiB needed, " in told
    assert " free on /" in told and "remove what nobody needs there" in told
    assert "The step in hand is kept in memory; waiting for another 60 s (run.disk_patience)" in told
    assert not disk.waiting and not disk.given_up


@pytest.mark.parametrize("number", CURES)
def test_each_refusal_says_what_to_do(tmp_path: Path, number: int):
    with pytest.raises(DiskUnusable) as caught:
        Disk(0.0, tmp_path).write(tmp_path / "x", 0, refuses(number))
    assert os.strerror(number) in str(caught.value)
    assert CURES[number] in str(caught.value)


@pytest.mark.parametrize("error", [ValueError("x"), OSError(errno.ENOENT, "x"), RuntimeError("(os error 2)")])
def test_other_errors_are_no_reason_to_wait(tmp_path: Path, error: Exception):
    def act() -> None:
        raise error

    stop = Meanwhile(lambda: None)
    with pytest.raises(type(error)) as caught:
        Disk(60.0, tmp_path, stop).write(tmp_path, 0, act)
    assert caught.value is error
    assert stop.waits == []


def test_in_the_end_it_gives_up_with_75_and_names_the_newest_checkpoint(tmp_path: Path):
    disk = Disk(0.0, tmp_path / "checkpoints")
    with pytest.raises(DiskUnusable, match="after waiting for 0 s; there is no checkpoint yet") as caught:
        disk.write(tmp_path / "x", 1, to_full_device)
    assert caught.value.exit_code == 75
    assert disk.given_up
    path = checkpoints.save(tmp_path / "checkpoints", 7, {"p": 1})
    with pytest.raises(
        DiskUnusable, match=f"the newest whole checkpoint is {path}; then go on with --resume"
    ):
        disk.write(tmp_path / "x", 1, to_full_device)
    (path / "manifest.json").unlink()
    with pytest.raises(DiskUnusable, match="no checkpoint is whole"):
        disk.write(tmp_path / "x", 1, to_full_device)


def test_a_wish_to_stop_ends_the_wait(tmp_path: Path):
    stop = Meanwhile(lambda: stop.request(), at=3)
    with pytest.raises(DiskUnusable, match="stopped while waiting"):
        Disk(1e9, tmp_path, stop).write(tmp_path / "x", 1, to_full_device)
    assert len(stop.waits) == 3


def test_a_copy_and_a_model_that_do_not_fit_are_the_disks_refusals(tmp_path: Path, tiny_policy: Path):
    lm = load_causal_lm(str(tiny_policy), choose_placement("cpu", "float32", 1))
    writes = {
        "copy": lambda: copy_folder(tiny_policy, tmp_path / "copy"),
        "export": lambda: export_model(lm.model, lm.tokenizer, tmp_path / "export"),
    }
    for name, write in writes.items():
        with no_file_above(20_000) as lift:
            stop = Meanwhile(lift)
            Disk(60.0, tmp_path, stop).write(tmp_path / name, 0, write)
        assert len(stop.waits) == 1, name
        assert (tmp_path / name / "model.safetensors").stat().st_size > 20_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "export"]


def test_a_checkpoint_waits_and_the_run_goes_on_as_if_nothing_had_been(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with no_file_above(8192) as lift:
        stage = Stage(tmp_path, total=4, stop=Meanwhile(lift), size=100_000)
        stage.run()
    assert saved(tmp_path) == [2, 4]
    assert [line["step"] for line in read_lines(tmp_path / "r" / "metrics.jsonl")] == [1, 2, 3, 4]
    assert "r/checkpoints can't be written: File too large, 97.7 KiB needed" in caplog.text
    assert list((tmp_path / "r" / "checkpoints").glob(".*")) == []


def test_prometheus_says_that_it_waits_and_how_long_a_checkpoint_took(tmp_path: Path):
    seen: list[float | None] = []
    with no_file_above(8192) as lift:

        def look() -> None:
            lift()
            seen.append(stage.loop.metrics.registry.get_sample_value("plaudit_sft_disk_waiting"))

        stage = Stage(tmp_path, total=2, stop=Meanwhile(look), size=100_000)
        stage.run()
    value = stage.loop.metrics.registry.get_sample_value
    assert (seen, value("plaudit_sft_disk_waiting")) == ([1.0], 0.0)
    assert (value("plaudit_sft_checkpoint_seconds") or 0) > 0


def test_a_line_of_metrics_is_written_whole_or_not_at_all(tmp_path: Path):
    path, sizes = tmp_path / "metrics.jsonl", []

    def look() -> None:
        lift()
        sizes.append(path.stat().st_size)

    with RunMetrics("sft", tmp_path, disk=Disk(60.0, tmp_path, Meanwhile(look))) as metrics:
        metrics.log(1, {"lr": 1.0})
        whole = path.read_bytes()
        with no_file_above(len(whole) + 20) as lift:
            metrics.log(2, {"lr": 2.0})
    assert sizes == [len(whole)], "what the disk took of the second line is gone while it waits"
    assert [(line["step"], line["lr"]) for line in read_lines(path)] == [(1, 1.0), (2, 2.0)]


@pytest.mark.parametrize("size", [8192, 100])  # no room for a checkpoint; nor for a line of metrics
def test_sigterm_while_it_waits_ends_the_run_with_its_last_checkpoint(tmp_path: Path, size: int):
    Stage(tmp_path, total=2, size=100_000).run()
    stop = Meanwhile(lambda: stop.request())
    stage = Stage(tmp_path, resume=True, stop=stop, size=100_000)
    with no_file_above(size), pytest.raises(DiskUnusable, match=r"whole checkpoint is .*step-00000002"):
        stage.run()
    assert len(stop.waits) == 1
    assert saved(tmp_path) == [2]
    again = Stage(tmp_path, resume=True, size=100_000)
    again.run()
    assert [line["step"] for line in read_lines(tmp_path / "r" / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


ON_A_VOLUME = """
import subprocess, sys
from pathlib import Path

from counting_stage import Stage
from test_trainer_disk import Meanwhile

volume = Path(sys.argv[1])
ballast, checkpoints = volume / "ballast", str(volume / "r" / "checkpoints")


def mount(*options):
    subprocess.run(["mount", *options], check=True)


def read_only():
    mount("--bind", checkpoints, checkpoints)
    mount("-o", "remount,bind,ro", checkpoints)


def run(total, harm, mend):
    stop = Meanwhile(mend, at=2)
    stage = Stage(volume, total=total, resume=True, size=300_000, stop=stop, keep_checkpoints=1)
    stage.after_step = lambda done: harm() or {} if done == total else {}
    stage.run()
    print(len(stage.opened.stop.waits), stage.opened.checkpoint, flush=True)


mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(volume))
run(2, lambda: None, lambda: None)
run(4, lambda: ballast.write_bytes(bytes(500_000)) and None, ballast.unlink)
run(6, read_only, lambda: subprocess.run(["umount", checkpoints], check=True))
run(6, lambda: None, lambda: None)
"""


def test_a_volume_that_is_full_or_read_only(tmp_path: Path):
    here = Path(__file__).parent
    probe = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        allowed = subprocess.run([*probe, "true"], capture_output=True, timeout=10).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("this machine lets nobody but root mount a volume")
    command = [*probe, sys.executable, "-c", ON_A_VOLUME, str(tmp_path)]
    path = os.pathsep.join([str(here), str(here.parents[2])])
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    waits = [line.split()[0] for line in done.stdout.splitlines()]
    assert waits == ["0", "2", "2", "0"]
    assert done.stdout.endswith("step-00000006\n")
    assert "No space left on device, 293.0 KiB needed" in done.stderr
    assert "Read-only file system" in done.stderr
