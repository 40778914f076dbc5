"""What a server may read of the volumes it shares: files below its --weights-root folders, and no others."""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lm.errors import InputError
from lm.roots import Roots
from services.errors import InvalidInput, PreconditionFailed, UnknownName


class WeightsRoots:
    """The folders below which files may be read; nothing is, if none are given."""

    def __init__(self, folders: Sequence[str] = ()) -> None:
        """Raises InputError for one that isn't there."""
        for folder in folders:
            if not Path(folder).is_dir():
                raise InputError("--weights-root", f"{folder!r} is no folder")
        self._roots = Roots(folders) if folders else None

    def find(self, uri: str) -> Path:
        """The path that `uri` stands for, still to be opened.

        Raises InvalidInput if it can't be one, PreconditionFailed if this server reads no files at all.
        """
        if self._roots is None:
            text = "this server reads no files; it would have to be started with --weights-root DIR"
            raise PreconditionFailed("ROOT", "uri", text)
        try:
            parts = urlsplit(uri)
        except ValueError as error:
            raise InvalidInput.at("uri", f"can't be read: {error}") from None
        path = unquote(parts.path)
        others = parts.netloc or parts.query or parts.fragment
        if parts.scheme != "file" or others or not path.startswith("/"):
            raise InvalidInput.at("uri", "isn't file:///PATH, the only kind there is")
        if "\0" in path or ".." in Path(path).parts:
            raise InvalidInput.at("uri", "holds '..' or a zero byte; write the path without")
        return Path(path)

    @contextmanager
    def open(self, path: Path) -> Iterator[int]:
        """A file or folder by its descriptor.

        Raises InvalidInput if it lies elsewhere or is neither of both, UnknownName if it isn't there,
        PreconditionFailed if it can't be opened, or read within the block.
        """
        found = self._roots.find(path) if self._roots else None
        if found is None:
            raise InvalidInput.at("uri", "leads to no place below a --weights-root of this server")
        try:
            opened = _open_below(*found)
            try:
                mode = os.fstat(opened).st_mode
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    raise InvalidInput.at("uri", f"{path.name} is neither a file nor a folder")
                yield opened
            finally:
                os.close(opened)
        except (FileNotFoundError, NotADirectoryError):
            raise UnknownName("file", str(path)) from None
        except OSError as error:
            raise PreconditionFailed(
                "FILE", path.name, f"{path.name} can't be read: {error.strerror}"
            ) from None


def _open_below(root: Path, way: Path) -> int:
    """Follows no link: a folder that is replaced by one since it was resolved leads nowhere else."""
    opened = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for part in way.parts:
        try:
            inner = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=opened)
        finally:
            os.close(opened)
        opened = inner
    return opened
