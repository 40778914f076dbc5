"""Types of the keys that name places on this machine: below the roots, where the operator has set some.

`load_config` hands the roots over as pydantic's context. They are looked at when the configuration is read.
"""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from lm.roots import Roots, is_hub_id

OUTSIDE = "outside_roots"
"""pydantic's type of these errors, whose text names the place itself."""
CHECKPOINTS = "checkpoints"
"""Where they are in a run's folder."""


def _place(path: Path, info: ValidationInfo) -> Path:
    _check(path, info)
    return path


def _model(name: str, info: ValidationInfo) -> str:
    if not is_hub_id(name):
        _check(name, info)
    return name


def _plugin(reference: str, info: ValidationInfo) -> str:
    file = reference.rpartition(":")[0]
    if file.endswith(".py"):  # else a module, which Python looks for in places of its own
        _check(file, info)
    return reference


def _as_json(directory: object, info: ValidationInfo) -> object:
    """The default is a Path, and pydantic, where it validates it as part of a JSON text, knows none there."""
    return str(directory) if isinstance(directory, Path) and info.mode == "json" else directory


def _run_directory(directory: Path, info: ValidationInfo) -> Path:
    """Checks what the run writes to as well: it may find links in their place."""
    folder = directory / info.data.get("name", "")
    for place in (directory, folder, folder / CHECKPOINTS):
        _check(place, info)
    return directory


def _check(path: str | Path, info: ValidationInfo) -> None:
    roots: Roots | None = info.context
    if roots is not None and (wrong := roots.misfit(path)):
        raise PydanticCustomError(OUTSIDE, "{wrong}", {"wrong": wrong})


PlacePath = Annotated[Path, AfterValidator(_place)]
"""A file or folder."""
ModelPath = Annotated[str, AfterValidator(_model)]
"""A model's folder, or its hub id."""
PluginPath = Annotated[str, AfterValidator(_plugin)]
"""Python by its file or module: trainer.evaluate.plugins."""
RunDirectory = Annotated[
    Path, BeforeValidator(_as_json), AfterValidator(_run_directory), Field(validate_default=True)
]
"""The folder of runs, below a key `name`."""
