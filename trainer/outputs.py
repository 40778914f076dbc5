"""What a stage leaves behind, each written whole or not at all.

What has its name is on the disk, not only in the memory of the system: it outlasts a loss of power.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def export_model(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Writes the model so that `folder` is either whole or not there."""
    from lm.loading import save_model  # brings torch, which who only reads and writes JSON can do without

    with replaced(folder) as temporary:
        save_model(model, tokenizer, temporary)


def copy_folder(source: Path, target: Path) -> None:
    """Copies so that `target` is either whole or not there."""
    with replaced(target) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """An empty folder to write to, which becomes `folder` at the end of the block unless it raises."""
    temporary = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # on a full disk the room is needed
        raise
    replace_folder(temporary, folder)


def replace_folder(source: Path, target: Path) -> None:
    """Renames `source` to `target`, which may be there already, once all that is in it is on the disk."""
    for path in (*source.rglob("*"), source):
        sync(path)
    shutil.rmtree(target, ignore_errors=True)
    source.rename(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Has what a file holds, or the names that a folder does, outlast the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes all or nothing."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes all or nothing; makes the folder, too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync(path.parent)


def read_json(path: Path) -> dict[str, Any]:
    """The object that `write_json` wrote; empty if there is none. Raises CheckpointError."""
    if not path.exists():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} can't be read: {error}; remove it") from None
    return content
