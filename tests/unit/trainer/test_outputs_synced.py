"""What has its name is on the disk: each file, its folder, and then the folder's entry, around the renaming.

A machine can't lose its power here; that `os.fsync` keeps its word is the kernel's part.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lm.loading import load_causal_lm
from lm.placement import choose_placement
from trainer import checkpoints
from trainer.evaluate.run import write
from trainer.outputs import copy_folder, export_model, write_json
from trainer.report.build import build_report


class Durable:
    """What would still be there without power: what was synced since it changed, or got its name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._synced: dict[int, int] = {}
        self._unsure: set[int] = set()
        """Folders, by number, in which something has got a name since they were synced."""
        self.renamed: list[Path] = []
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self._sync)
        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, self._rename_by(getattr(os, name)))

    def _sync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        status = os.fstat(descriptor)
        self._synced[status.st_ino] = status.st_mtime_ns
        self._unsure.discard(status.st_ino)

    def _rename_by(self, rename: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
        def renamed(source: Path, target: Path) -> None:
            for path in (source, *source.rglob("*")):
                assert self.holds(path), f"{path} has its name too early"
            rename(source, target)
            self._unsure.add(target.parent.stat().st_ino)
            self.renamed.append(target)

        return renamed

    def holds(self, path: Path) -> bool:
        status = path.stat()
        return self._synced.get(status.st_ino) == status.st_mtime_ns

    def check(self) -> None:
        assert self.renamed
        assert not self._unsure, "an entry isn't on the disk"


@pytest.fixture
def durable(monkeypatch: pytest.MonkeyPatch) -> Durable:
    return Durable(monkeypatch)


@pytest.mark.parametrize("again", [False, True])
def test_a_model_and_a_copy_of_it(tmp_path: Path, tiny_policy: Path, durable: Durable, again: bool):
    lm = load_causal_lm(str(tiny_policy), choose_placement("cpu", "float32", 1))
    for _ in range(1 + again):
        export_model(lm.model, lm.tokenizer, tmp_path / "best")
        copy_folder(tmp_path / "best", tmp_path / "policy")
        durable.check()
    assert {each.name for each in durable.renamed} == {"best", "policy"}


def test_a_copy_with_folders_in_it(tmp_path: Path, durable: Durable):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("c")
    copy_folder(tmp_path / "a", tmp_path / "copy")
    durable.check()
    assert durable.holds(tmp_path / "copy" / "b" / "c")


def test_json_an_evaluation_and_a_report(tmp_path: Path, durable: Durable):
    write_json(tmp_path / "run.json", {"steps": 3})
    write(tmp_path / "new", {"a": 1})
    build_report(tmp_path / "report.html", title="nothing yet")
    durable.check()
    assert [each.name for each in durable.renamed] == ["run.json", "evaluation.json", "report.html"]


def test_checkpoints(tmp_path: Path, durable: Durable):
    for step in (1, 2, 2):
        checkpoints.save(tmp_path, step, {"p": {"t": torch.full((3,), step), "n": len(durable.renamed)}})
        durable.check()
    assert len(durable.renamed) == 4, "the last one after the former of its step was moved aside"
