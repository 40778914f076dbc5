"""Tensors in safetensors files: found by their headers, checked against a manifest, read in chunks.

Nothing is unpickled, and nothing mapped into memory: a file that shrinks while it is read is an error,
not the end of the process. That the bytes are the right ones is for the digest of the push to say.
"""

import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.errors import InvalidInput, PreconditionFailed
from services.policy.interface import TensorSpec
from services.policy.weights_roots import WeightsRoots

MOST_HEADER_BYTES = 4 * 1024 * 1024
"""Of one file; 10,000 tensors need 1 MiB."""
MOST_FILES = 256
"""In a folder."""
CHUNK_BYTES = 4 * 1024 * 1024
SUFFIX = ".safetensors"
_LENGTH_BYTES = 8
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class _Stored:
    """A tensor in a file."""

    path: Path
    spec: TensorSpec
    start: int
    """Byte of the file at which it begins."""
    end: int


def tensor_chunks(roots: WeightsRoots, uri: str, specs: Iterable[TensorSpec]) -> Iterator[bytes]:
    """The bytes of the tensors, in the order of `specs`: checked at once, and read as they are taken.

    Both take a while, in any thread. Raises InvalidInput for a place that may not be read, UnknownName
    for one that isn't there, PreconditionFailed for files that aren't as they should be.
    """
    stored: dict[str, _Stored] = {}
    for path in _files(roots, roots.find(uri)):
        for tensor in _tensors(roots, path):
            if tensor.spec.name in stored:
                raise _misfit(path, f"holds {tensor.spec.name!r}, as another file of the folder does")
            stored[tensor.spec.name] = tensor
    return _read(roots, [_chosen(stored, spec, f"manifest.tensors[{at}]") for at, spec in enumerate(specs)])


def _files(roots: WeightsRoots, path: Path) -> list[Path]:
    with roots.open(path) as opened:
        if not stat.S_ISDIR(os.fstat(opened).st_mode):
            if path.suffix != SUFFIX:
                raise InvalidInput.at("uri", f"{path.name} is no {SUFFIX} file; pickle is never read")
            return [path]
        names = os.listdir(opened)  # noqa: PTH208 (a Path takes no descriptor)
    names = sorted(name for name in names if name.endswith(SUFFIX))
    if not 0 < len(names) <= MOST_FILES:
        text = f"holds {len(names)} {SUFFIX} files, not 1 to {MOST_FILES}; nothing else is read, pickle never"
        raise InvalidInput.at("uri", text)
    return [path / name for name in names]


def _tensors(roots: WeightsRoots, path: Path) -> Iterator[_Stored]:
    """What the header of a file says, once it was seen that the file is as long as that."""
    with roots.open(path) as opened:
        size = os.fstat(opened).st_size
        length = int.from_bytes(os.pread(opened, _LENGTH_BYTES, 0), "little")
        if length > min(size, MOST_HEADER_BYTES):
            raise _misfit(path, f"is {size} bytes long and says that {length} of them are its header")
        header = os.pread(opened, length, _LENGTH_BYTES)
    try:
        tensors = list(_parsed(path, json.loads(header), _LENGTH_BYTES + length))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise _misfit(path, "has a header that can't be read") from None
    end = max((tensor.end for tensor in tensors), default=_LENGTH_BYTES + length)
    if end != size:
        raise _misfit(path, f"is {size} bytes long; by its header it has {end}")
    yield from tensors


def _parsed(path: Path, header: dict[str, Any], data: int) -> Iterator[_Stored]:
    """Raises ValueError, TypeError, KeyError, AttributeError, OverflowError for a header of another form."""
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = (data + int(offset) for offset in entry["data_offsets"])
            shape = tuple(int(size) for size in entry["shape"])
            yield _Stored(path, TensorSpec(name, _DTYPES.get(entry["dtype"], "another"), shape), start, end)


def _chosen(stored: dict[str, _Stored], spec: TensorSpec, path: str) -> _Stored:
    tensor = stored.get(spec.name)
    if tensor is None:
        text = f"no file holds tensor {spec.name!r}; leave it out"
        raise PreconditionFailed.at("MANIFEST", path, text)
    if tensor.spec != spec:
        text = f"{spec.name!r} is {spec} in the manifest and {tensor.spec} in {tensor.path.name}; correct one"
        raise PreconditionFailed.at("MANIFEST", path, text)
    if tensor.end - tensor.start != spec.nbytes or tensor.start < 0:
        raise _misfit(tensor.path, f"doesn't hold the {spec.nbytes} bytes of {spec.name!r} where it says")
    return tensor


def _read(roots: WeightsRoots, tensors: Sequence[_Stored]) -> Iterator[bytes]:
    for tensor in tensors:
        with roots.open(tensor.path) as opened:
            for offset in range(tensor.start, tensor.end, CHUNK_BYTES):
                count = min(CHUNK_BYTES, tensor.end - offset)
                data = os.pread(opened, count, offset)
                if len(data) < count:
                    raise _misfit(tensor.path, "has become shorter while it was read")
                yield data


def _misfit(path: Path, text: str) -> PreconditionFailed:
    return PreconditionFailed("FILE", path.name, f"{path.name} {text}")
