"""Checkpoints after accidents: files that are not what they were, and kills at any moment."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainer import checkpoints
from trainer.errors import CheckpointError

FILES = ["p.json", "p.safetensors", "manifest.json"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of the newer one of two checkpoints."""
    checkpoints.save(tmp_path, 3, {"p": torch.zeros(2)}, {"data.train": "d"})
    return checkpoints.save(tmp_path, 4, {"p": torch.ones(2)}, {"data.train": "d"})


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def lengthened(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def made_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [truncated, emptied, lengthened, flipped, made_a_folder, Path.unlink])
def test_any_damage_to_any_file_is_found_and_the_one_before_is_used(
    saved: Path, name: str, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
):
    harm(saved / name)
    with pytest.raises(CheckpointError, match=rf"step-00000004: {name}"):
        checkpoints.load(saved)
    assert checkpoints.latest_whole(saved.parent) == saved.parent / "step-00000003"
    assert f"step-00000004: {name}" in caplog.text


def test_a_manifest_torn_anywhere_is_damaged(saved: Path):
    text = (saved / "manifest.json").read_text()
    for length in range(0, len(text) - 1, 7):
        (saved / "manifest.json").write_text(text[:length])
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            checkpoints.read_manifest(saved)


@pytest.mark.parametrize("key", ["step", "parts", "files", "digests", "changes", "sha256"])
def test_a_manifest_that_was_edited_is_damaged(saved: Path, key: str):
    manifest = json.loads((saved / "manifest.json").read_text())
    for edited in ({k: v for k, v in manifest.items() if k != key}, manifest | {key: {}}):
        (saved / "manifest.json").write_text(json.dumps(edited))
        with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
            checkpoints.read_manifest(saved)


def test_a_copy_of_another_step_is_no_checkpoint_of_this_one(saved: Path):
    copy = shutil.copytree(saved, saved.parent / "step-00000005")
    with pytest.raises(CheckpointError, match=r"step-00000005: manifest\.json is that of step 4"):
        checkpoints.read_manifest(copy)
    shutil.copy(saved.parent / "step-00000003" / "manifest.json", saved)
    with pytest.raises(CheckpointError, match=r"step-00000004: manifest\.json is that of step 3"):
        checkpoints.read_manifest(saved)


def test_a_manifest_of_another_run_does_not_fit_the_files(saved: Path, tmp_path: Path):
    other = checkpoints.save(tmp_path / "other", 4, {"p": torch.zeros(2)})
    shutil.copy(other / "manifest.json", saved)
    with pytest.raises(CheckpointError, match=r"step-00000004: p\.safetensors is damaged"):
        checkpoints.load(saved)


def test_where_none_is_whole_each_is_named_and_nothing_is_touched(saved: Path):
    flipped(saved / "p.json")
    truncated(saved.parent / "step-00000003" / "manifest.json")
    with pytest.raises(CheckpointError) as caught:
        checkpoints.latest_whole(saved.parent)
    told = str(caught.value)
    assert "step-00000004: p.json is damaged" in told and "step-00000003: manifest.json" in told
    assert f"move {saved.parent} away to start from the beginning" in told
    assert len(list(saved.parent.iterdir())) == 2


def test_one_that_is_saved_again_over_a_damaged_one_is_whole(saved: Path):
    flipped(saved / "p.json")
    again = checkpoints.save(saved.parent, 4, {"p": torch.full((2,), 9.0)})
    assert again == saved == checkpoints.latest_whole(saved.parent)
    assert checkpoints.load(saved)["p"].tolist() == [9.0, 9.0]
    assert sorted(path.name for path in saved.parent.iterdir()) == ["step-00000003", "step-00000004"]


def test_one_that_was_being_replaced_when_the_process_was_killed_still_counts(saved: Path):
    former = saved.rename(saved.with_name(f".old-{saved.name}"))
    assert checkpoints.latest_whole(saved.parent) == former
    assert checkpoints.step_of(former) == 4
    checkpoints.save(saved.parent, 5, {"p": 1}, keep=2)
    assert sorted(path.name for path in saved.parent.iterdir()) == ["step-00000003", "step-00000005"]


AT_EVERY_POINT = '''
import os, shutil, signal, sys
from pathlib import Path

import torch

from trainer import checkpoints
from trainer.outputs import write_text

OPERATIONS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.scandir", "shutil.rmtree"}
SAME, NEXT = 1, 2


def die_at(point):
    """Kills this process right before its point-th operation on files."""
    seen = []

    def hook(event, arguments):
        if event in OPERATIONS:
            seen.append(event)
            if len(seen) == point:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def write(folder, step, value):
    write_text(folder.parent / "text", str(value) * 100)
    checkpoints.save(folder, step, {"p": {"t": torch.full((3,), value), "value": value}, "q": value}, keep=1)


def killed(root, step, point):
    """What is left of a write of `step` over step 1 that was killed at that point, and whether it was."""
    shutil.rmtree(root, ignore_errors=True)
    folder = root / "checkpoints"
    write(folder, 1, 10)
    if (child := os.fork()) == 0:
        die_at(point)
        write(folder, step, 20)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    path = checkpoints.latest_whole(folder)
    parts = checkpoints.load(path, ["p", "q"])
    assert parts["q"] == parts["p"]["value"] == parts["p"]["t"][0], parts
    assert checkpoints.step_of(path) == (step if parts["q"] == 20 else 1)
    assert (root / "text").read_text() in ("10" * 100, "20" * 100)
    write(folder, 3, 30)
    assert [each.name for each in folder.iterdir()] == ["step-00000003"], list(folder.iterdir())
    return parts["q"], bool(status)


for step in (SAME, NEXT):
    point, left = 0, []
    while True:
        point += 1
        value, died = killed(Path(sys.argv[1]), step, point)
        left.append(value)
        if not died:
            break
    assert left == sorted(left) and set(left) == {10, 20}, left
    print(step, point)
'''


def test_a_kill_at_any_point_of_saving_leaves_the_former_or_the_new_one_whole(tmp_path: Path):
    command = [sys.executable, "-c", AT_EVERY_POINT, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    same, following = (int(line.split()[1]) for line in done.stdout.splitlines())
    assert same > 15 and following > 15, "points at which it was killed"
