"""Code of the user's, found by file or module and name."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from trainer.errors import ConfigError, TrainerError

Plugin = Callable[[list[str], list[str]], Sequence[float | None]]
"""(prompts, responses) → one number each, or None where there can't be one."""


class JudgeError(TrainerError):
    """A judge can't be loaded, or didn't give one finite number per response."""

    exit_code = ConfigError.exit_code
    resumable = True


def load_plugin(reference: str, options: Mapping[str, object]) -> Plugin:
    """Imports "path/to/file.py:Name" or "package.module:Name".

    A class is made with `options` as keyword arguments and its instance called; a function is called
    with them beside prompts and responses. Raises JudgeError.
    """
    where, _, name = reference.rpartition(":")
    if not where or not name:
        raise JudgeError(f"judge {reference!r}: write it as 'path/to/file.py:Name' or 'package.module:Name'")
    found: Any = getattr(_import(where), name, None)
    if not callable(found):
        raise JudgeError(f"judge {reference!r}: {where} has no {name!r} that can be called")
    try:
        plugin: Plugin = partial(found, **options) if inspect.isroutine(found) else found(**options)
    except Exception as error:
        raise JudgeError(f"judge {reference!r}: {error!r}") from error
    return plugin


def _import(where: str) -> ModuleType:
    try:
        return _import_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except Exception as error:
        raise JudgeError(f"judge file {where!r} can't be imported: {error!r}") from error


def _import_file(path: Path) -> ModuleType:
    """Imports a file under a name of its own; a second judge of the same file shares the module."""
    name = f"plaudit_judge_{path.resolve().as_posix().replace('/', '_').removesuffix('.py')}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
