"""Folders below which files must lie, symbolic links resolved."""

import os
from collections.abc import Sequence
from pathlib import Path

from lm.errors import InputError


class Roots:
    """The folders. One that isn't there yet holds what will be below it."""

    def __init__(self, folders: Sequence[str]) -> None:
        self._folders = [Path(os.path.realpath(folder)) for folder in folders]

    @classmethod
    def parse(cls, text: str | None) -> "Roots | None":
        """What `--roots DIR:DIR` says; None without it, where a configuration may name any place.

        Raises InputError for an empty entry, which would stand for the working directory.
        """
        if text is None:
            return None
        folders = text.split(os.pathsep)
        if not all(folders):
            raise InputError("--roots", f"{text!r} has an empty entry; write DIR or DIR{os.pathsep}DIR")
        return cls(folders)

    def find(self, path: str | Path) -> tuple[Path, Path] | None:
        """The folder that `path` leads below, and the way from there; None if it leads elsewhere."""
        try:
            real = Path(os.path.realpath(path))
        except ValueError:  # a zero byte
            return None
        found = (folder for folder in self._folders if real.is_relative_to(folder))
        return next(((folder, real.relative_to(folder)) for folder in found), None)

    def misfit(self, path: str | Path) -> str | None:
        """What is wrong with a path that a configuration names; None where nothing is."""
        if self.find(path) is not None:
            return None
        folders = ", ".join(map(str, self._folders))
        return f"{str(path)!r} leads to no place below the roots {folders} (--roots, PLAUDIT_ROOTS)"


def is_hub_id(model: str) -> bool:
    """Whether a model's name stands for no place on this machine: it is NAME or OWNER/NAME, and not here."""
    is_place = model.startswith((os.sep, ".")) or model.count(os.sep) > 1 or os.path.lexists(model)
    return not is_place
