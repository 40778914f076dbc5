"""What a stage leaves behind, each written whole or not at all."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lm.loading import save_model
from trainer.errors import CheckpointError


def export_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes the model so that `folder` is either whole or not there."""
    temporary = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_model(model, tokenizer, temporary)
    replace_folder(temporary, folder)


def replace_folder(source: Path, target: Path) -> None:
    """Renames `source` to `target`, which may be there already."""
    shutil.rmtree(target, ignore_errors=True)
    source.rename(target)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes all or nothing."""
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The object that `write_json` wrote; empty if there is none. Raises CheckpointError."""
    if not path.exists():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} can't be read: {error}; remove it") from None
    return content
