"""What makes a resumed run the same run: its configuration but for volatile keys, its model, its data."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lm.digests import WeightsDigest, effective_tensors
from lm.loading import LoadedLM
from lm.tokenizer import chat_template_sha256, tokenizer_sha256
from trainer.config import Section
from trainer.data import file_digest
from trainer.errors import ConfigError


def identity(config: Section) -> dict[str, Any]:
    """The configuration without what may change when a run is resumed, as plain JSON values."""
    values: dict[str, Any] = json.loads(config.model_dump_json())
    for key in type(config).model_fields:
        child = getattr(config, key)
        if key in type(config).volatile:
            del values[key]
        elif isinstance(child, Section):
            values[key] = identity(child)
    return values


def config_digest(config: Section) -> str:
    """sha256 of `identity`, in hex."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()


def refuse_changes(config: Section, saved: Mapping[str, Any]) -> None:
    """Compares with the `identity` a checkpoint was made with. Raises ConfigError naming each key."""
    now, then = dict(_flatten(identity(config))), dict(_flatten(saved))
    problems = [
        f"{name}: the checkpoint was made with {then.get(name)!r}, not {now.get(name)!r}; "
        "put it back or give the run another name"
        for name in sorted(now.keys() | then.keys())
        if now.get(name) != then.get(name)
    ]
    if problems:
        raise ConfigError(problems)


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def source_digests(loaded: LoadedLM, files: Mapping[str, Path | None]) -> dict[str, str]:
    """Digests of the model that training starts from, its tokenizer, and the data `files` by their key."""
    return {
        "model.path": WeightsDigest(effective_tensors(loaded.model)).hexdigest(),
        "tokenizer": tokenizer_sha256(loaded.tokenizer),
        "chat template": chat_template_sha256(loaded.tokenizer),
        **{key: file_digest(path) for key, path in files.items() if path is not None},
    }
