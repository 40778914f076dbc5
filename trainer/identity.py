"""What makes a resumed run the same run: its configuration but for volatile keys, its models, its data."""

import hashlib
import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm.digests import WeightsDigest, effective_tensors
from lm.loading import LoadedLM
from lm.tokenizer import chat_template_sha256, tokenizer_sha256
from trainer.config import Section
from trainer.data import file_digest
from trainer.errors import ConfigError

CONFIG = "config"
"""The digest of the configuration itself, among the others of a checkpoint."""

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Change:
    """Something that a run is made of, and that differs from what its checkpoint was made with."""

    key: str
    """Of the configuration, or of the digests."""
    saved: Any
    now: Any
    """Plain JSON values, as is `saved`; None where there is none."""
    place: str = ""
    """The file, folder or address whose content is meant."""

    def __str__(self) -> str:
        where = f" ({self.place})" if self.place else ""
        return f"{self.key}{where}: {_shown(self.saved)} when it was saved → {_shown(self.now)} now"


def _shown(value: Any) -> str:  # noqa: ANN401  (plain JSON)
    """As JSON; of a digest the beginning is enough to tell two apart."""
    is_digest = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
    return f"sha256 {value[:12]}…" if is_digest else json.dumps(value, ensure_ascii=False)


def config_changes(config: Section, saved: Mapping[str, Any]) -> list[Change]:
    """Against the `identity` that a checkpoint was made with."""
    now, then = dict(_flatten(identity(config))), dict(_flatten(saved))
    return _differences(then, now)


def digest_changes(config: Section, digests: Mapping[str, str], saved: Mapping[str, str]) -> list[Change]:
    """Against the digests in a checkpoint's manifest."""
    return [
        replace(change, place=str(_at(config, change.key) or ""))
        for change in _differences({k: v for k, v in saved.items() if k != CONFIG}, digests)
    ]


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    keys = sorted(saved.keys() | now.keys())
    return [Change(key, saved.get(key), now.get(key)) for key in keys if saved.get(key) != now.get(key)]


def refuse_changes(changes: Sequence[Change], accepted: Collection[str]) -> None:
    """Raises ConfigError showing all that isn't `accepted` by its key; tells the log of the rest."""
    refused = [change for change in changes if change.key not in accepted]
    if refused:
        keys = ",".join(sorted({*accepted, *(change.key for change in refused)}))
        advice = f"put it back, give the run another name, or go on with it: --accept-changes {keys}"
        raise ConfigError([*map(str, refused), advice])
    for change in changes:
        logger.warning("accepted: %s", change)


def _at(config: Section, key: str) -> Any:  # noqa: ANN401  (whatever the configuration has there)
    """The value at "section.key"; None if there is no such key."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name, None)
    return value


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
        "chat_template": chat_template_sha256(loaded.tokenizer),
        **{key: file_digest(path) for key, path in files.items() if path is not None},
    }
