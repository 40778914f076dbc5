"""Checkpoints: written whole or not at all, and read only when nothing is missing.

    FOLDER/step-00000042/
        manifest.json            step, parts, sha256 of each file and of itself, digests of what was used
        policy.safetensors       tensors of the part "policy", by path
        policy.json              its shape and its scalars, with references to the tensors

A part is any nesting of dicts, lists, tuples, scalars and tensors, so optimiser and generator states fit as
they are. Nothing is pickled. A checkpoint is written to a temporary folder, synced, then renamed.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.errors import CheckpointError
from trainer.outputs import sync

# dict | list | tuple | str | int | float | bool | None | Tensor, nested at will. Any: torch types states so.
State: TypeAlias = Any
Json: TypeAlias = Any

MANIFEST = "manifest.json"
VERSION = 2
_PREFIX = "step-"
_TEMPORARY = ".tmp-"
_FORMER = ".old-"
_TAG = "$"
_KINDS = {"step": int, "parts": dict, "files": dict, "digests": dict, "changes": list}
"""What of a manifest is read."""

logger = logging.getLogger(__name__)


def save(
    folder: Path,
    step: int,
    parts: Mapping[str, State],
    digests: Mapping[str, str] | None = None,
    keep: int = 2,
    changes: Sequence[Mapping[str, Json]] = (),
) -> Path:
    """Writes `parts` as the checkpoint of `step`, keeps the newest `keep`, and returns its folder.

    `digests` (configuration, data, tokenizer), and `changes` of these on the way, go to the manifest.
    Checkpoints of later steps are of a course that was abandoned by resuming from an earlier one, and are
    removed. Raises OSError, or what safetensors makes of one; then nothing has changed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{_PREFIX}{step:08d}"
    temporary = folder / f"{_TEMPORARY}{target.name}"
    for leftover in folder.glob(f"{_TEMPORARY}*"):  # of a process that was killed while saving
        shutil.rmtree(leftover)
    try:
        temporary.mkdir()
        _write(temporary, step, parts, {"digests": dict(digests or {}), "changes": list(changes)})
        _put_in_place(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # on a full disk the room is needed
        raise
    _remove_all_but(folder, step, keep)
    return target


def size(state: State) -> int:
    """Bytes of the tensors in `state`: about what `save` writes of it."""
    if isinstance(state, Tensor):
        return state.nbytes
    inner = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return sum(map(size, inner))


def _write(folder: Path, step: int, parts: Mapping[str, State], facts: Mapping[str, Json]) -> None:
    """All files, the manifest last."""
    files = {name: _write_part(folder, name, state) for name, state in parts.items()}
    digests = {name: _sha256(folder / name) for names in files.values() for name in names}
    manifest = {"version": VERSION, "step": step, "parts": files, "files": digests, **facts}
    whole = {**manifest, "sha256": _json_sha256(manifest)}
    _write_text(folder / MANIFEST, json.dumps(whole, indent=1, sort_keys=True))
    sync(folder)


def load(path: Path, required: Collection[str] = ()) -> dict[str, State]:
    """The parts of the checkpoint at `path`, tensors on the CPU.

    Raises CheckpointError if a file is absent or damaged, or one of the `required` parts isn't there.
    """
    manifest = read_manifest(path)
    missing = sorted(set(required) - manifest["parts"].keys())
    if missing:
        raise CheckpointError(f"checkpoint {path} lacks the part {', '.join(missing)}")
    return {name: _read_part(path, name, files) for name, files in manifest["parts"].items()}


def load_part(path: Path, name: str) -> State:
    """One part of the checkpoint at `path`. Raises CheckpointError as `load` does."""
    files = read_manifest(path)["parts"].get(name)
    if files is None:
        raise CheckpointError(f"checkpoint {path} lacks the part {name}")
    return _read_part(path, name, files)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the checkpoint at `path`, after every file was held against it.

    Raises CheckpointError naming the first file that is absent or damaged.
    """
    manifest = _read_sealed(path)
    if manifest["step"] != step_of(path):
        raise CheckpointError(f"checkpoint {path}: {MANIFEST} is that of step {manifest['step']}")
    for name, digest in manifest["files"].items():
        try:
            found = _sha256(path / name) if (path / name).is_file() else None
        except OSError as error:
            raise CheckpointError(f"checkpoint {path}: {name} can't be read: {error.strerror}") from None
        if found is None:
            raise CheckpointError(f"checkpoint {path}: {name} is missing")
        if found != digest:
            raise CheckpointError(f"checkpoint {path}: {name} is damaged (its sha256 differs)")
    return manifest


def _read_sealed(path: Path) -> dict[str, Any]:
    """The manifest, which is as it was written and has all that is read of it."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
            raise CheckpointError(f"checkpoint {path}: {MANIFEST} is not of version {VERSION}")
        is_sealed = manifest.pop("sha256", None) == _json_sha256(manifest)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path}: {MANIFEST} can't be read: {error}") from None
    if not is_sealed:
        raise CheckpointError(f"checkpoint {path}: {MANIFEST} is damaged (its sha256 differs)")
    wrong = [name for name, kind in _KINDS.items() if not isinstance(manifest.get(name), kind)]
    if wrong:
        raise CheckpointError(f"checkpoint {path}: {MANIFEST} lacks {', '.join(wrong)}")
    return manifest


def latest_whole(folder: Path) -> Path | None:
    """The newest checkpoint in `folder` that is whole; damaged ones are skipped with a warning.

    None if there is no checkpoint. Raises CheckpointError if there are some and none is whole: to start from
    the beginning over them is for a person to decide.
    """
    damaged = []
    for path in reversed(_checkpoints(folder)):
        try:
            read_manifest(path)
        except CheckpointError as error:
            logger.warning("%s; trying the one before", error)
            damaged.append(str(error))
        else:
            return path
    if damaged:
        advice = f"put a whole one back, or move {folder} away to start from the beginning"
        raise CheckpointError(f"no checkpoint is whole ({'; '.join(damaged)}); {advice}")
    return None


def step_of(path: Path) -> int:
    """The step of the checkpoint at `path`."""
    return int(path.name.rpartition("-")[2])


def _checkpoints(folder: Path) -> list[Path]:
    """Oldest first. One that was being replaced when its process was killed counts, before its successor."""
    found = [*folder.glob(f"{_FORMER}{_PREFIX}*"), *folder.glob(f"{_PREFIX}*")]
    return sorted((path for path in found if path.name.rpartition("-")[2].isdecimal()), key=step_of)


def _write_part(folder: Path, name: str, state: State) -> list[str]:
    if not name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f"{name!r} can't name a part: letters, digits, - and _ only")
    tensors: dict[str, Tensor] = {}
    tree = _flatten(state, name, tensors)
    _write_text(folder / f"{name}.json", json.dumps(tree))
    if not tensors:
        return [f"{name}.json"]
    save_file(tensors, folder / f"{name}.safetensors")
    sync(folder / f"{name}.safetensors")
    return [f"{name}.json", f"{name}.safetensors"]


def _read_part(folder: Path, name: str, files: Collection[str]) -> State:
    try:
        tensors = load_file(folder / f"{name}.safetensors") if f"{name}.safetensors" in files else {}
        return _unflatten(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")), tensors)
    except (OSError, SafetensorError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {folder}: the part {name} can't be read: {error}") from None


def _flatten(value: State, path: str, tensors: dict[str, Tensor]) -> Json:
    """`value` as JSON; its tensors are put into `tensors` under their path."""
    if isinstance(value, Tensor):
        key = f"{len(tensors)}:{path}"  # the number keeps {"a.b": …} apart from {"a": {"b": …}}
        # A clone each: safetensors refuses two tensors that share memory.
        tensors[key] = value.detach().cpu().clone().contiguous()
        return {_TAG: "tensor", "name": key}
    if isinstance(value, Mapping):
        items = [(key, _flatten(each, f"{path}.{key}", tensors)) for key, each in value.items()]
        if all(isinstance(key, str) and key != _TAG for key, _ in items):
            return dict(items)
        return {_TAG: "dict", "items": [[_flatten(key, path, tensors), each] for key, each in items]}
    if isinstance(value, list | tuple):
        items = [_flatten(each, f"{path}.{index}", tensors) for index, each in enumerate(value)]
        return items if isinstance(value, list) else {_TAG: "tuple", "items": items}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{path}: a {type(value).__name__} can't be kept in a checkpoint")


def _unflatten(tree: Json, tensors: Mapping[str, Tensor]) -> State:
    if isinstance(tree, list):
        return [_unflatten(each, tensors) for each in tree]
    if not isinstance(tree, dict):
        return tree
    match tree.get(_TAG):
        case None:
            return {key: _unflatten(each, tensors) for key, each in tree.items()}
        case "tensor":
            return tensors[tree["name"]]
        case "tuple":
            return tuple(_unflatten(each, tensors) for each in tree["items"])
        case _:
            return {_unflatten(key, tensors): _unflatten(each, tensors) for key, each in tree["items"]}


def _put_in_place(temporary: Path, target: Path) -> None:
    if target.exists() and _same_files(temporary, target):
        shutil.rmtree(temporary)  # resumed and stopped at once: nothing new to keep
        return
    if target.exists():  # moved, not removed: a kill right here must not cost the only checkpoint
        former = target.with_name(f"{_FORMER}{target.name}")
        shutil.rmtree(former, ignore_errors=True)
        target.rename(former)
    temporary.rename(target)
    sync(target.parent)


def _same_files(one: Path, other: Path) -> bool:
    try:
        return read_manifest(one) == read_manifest(other)
    except CheckpointError:
        return False


def _remove_all_but(folder: Path, step: int, keep: int) -> None:
    former = list(folder.glob(f"{_FORMER}*"))
    paths = [path for path in _checkpoints(folder) if path not in former]
    abandoned = [path for path in paths if step_of(path) > step]
    old = [path for path in paths if step_of(path) <= step][:-keep]
    for path in former + abandoned + old:
        shutil.rmtree(path)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    sync(path)


def _json_sha256(content: Json) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
