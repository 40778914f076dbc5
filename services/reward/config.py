"""Which models a reward server has: one by its path, or several from a TOML file.

[[models]]                      # the first is the default
name = "helpful"
path = "org/helpful-rm"         # a folder or a hub id
cache_items = 100000            # results kept by their token ids; none unless asked for

[[models]]
name = "attributes"             # a model with num_labels > 1
path = "org/attribute-rm"
weights = { helpfulness = 1.0, verbosity = -0.3 }

[[models]]
name = "careful"
ensemble = ["helpful", "attributes"]
combine = "mean_minus_std"      # or "mean", "min"
deviation_factor = 1.0
"""

import difflib
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from lm.errors import InputError
from lm.roots import Roots, is_hub_id
from services.reward.interface import Combination
from services.rpc.command import ModelOptions

COMBINE = tuple(rule for rule in get_args(Combination) if rule not in ("", "weighted_sum"))


@dataclass(frozen=True)
class ModelSpec:
    """One network. What the command line says of all, the file may say otherwise for each."""

    name: str
    path: str
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    weights: Mapping[str, float] = field(default_factory=dict)
    compare_temperature: float = 1.0
    cache_items: int = 0
    special_tokens_in_text: Literal["refuse", "escape"] = "refuse"
    trust_remote_code: bool = False

    def attribute_weights(self, attributes: Sequence[str]) -> tuple[float, ...]:
        """A weight for each output; 1 for the only one. Raises InputError if the names don't fit."""
        if not self.weights:
            if len(attributes) == 1:
                return (1.0,)
            raise InputError(
                f"models.{self.name}.weights", f"is needed: the model has {', '.join(attributes)}"
            )
        for name in self.weights:
            if name not in attributes:
                raise InputError(
                    f"models.{self.name}.weights.{name}",
                    f"isn't an attribute of the model; it has {', '.join(attributes)}",
                )
        return tuple(float(self.weights.get(name, 0.0)) for name in attributes)


@dataclass(frozen=True)
class EnsembleSpec:
    """Several models that answer as one."""

    name: str
    ensemble: tuple[str, ...]
    combine: Combination = "mean"
    deviation_factor: float = 1.0
    compare_temperature: float = 1.0


Spec = ModelSpec | EnsembleSpec


def model_specs(options: ModelOptions, roots: Roots | None = None) -> list[Spec]:
    """What `--model` asks for; the folders that a file names lie below `roots`. Raises InputError."""
    defaults = {key: value for key, value in asdict(options).items() if key != "model"}
    if not options.model.endswith(".toml"):
        return [ModelSpec("reward", options.model, **defaults)]
    tables = _read(Path(options.model))
    specs = [_spec(table, f"models[{index}]", defaults) for index, table in enumerate(tables)]
    _check_names(specs)
    if roots is not None:
        _check_places(specs, roots)
    return specs


def _read(file: Path) -> list[object]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        repr(content)  # what can't be shown can't be refused by its value: numbers of thousands of digits
    except OSError as error:
        raise InputError("--model", f"{file} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # also lists in lists in lists
        raise InputError("--model", f"{file} isn't TOML: {error}") from None
    tables = content.get("models")
    if not isinstance(tables, list) or not tables or set(content) != {"models"}:
        raise InputError("--model", f"{file} should hold [[models]] tables and nothing else")
    return tables


def _spec(table: object, path: str, defaults: Mapping[str, Any]) -> Spec:
    if not isinstance(table, dict):
        raise InputError(path, "should be a table")
    kind = EnsembleSpec if "ensemble" in table else ModelSpec
    known = {each.name: each for each in fields(kind)}
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"use {', '.join(known)}"
            raise InputError(f"{path}.{key}", f"is unknown; {hint}")
    for key in ("name", "ensemble" if kind is EnsembleSpec else "path"):
        if not table.get(key):
            raise InputError(f"{path}.{key}", "is missing")
    values = {**(defaults if kind is ModelSpec else {}), **table}
    for key, value in values.items():
        _check_value(key, value, f"{path}.{key}")
    if kind is EnsembleSpec:
        values["ensemble"] = tuple(values["ensemble"])
    return kind(**values)


def _check_value(key: str, value: object, path: str) -> None:
    checks: dict[str, tuple[Callable[[object], bool], str]] = {
        "ensemble": (_is_names, "a list of at least two model names"),
        "combine": (lambda found: found in COMBINE, f"one of {', '.join(COMBINE)}"),
        "weights": (_is_weights, "a table of attribute = number"),
        "compare_temperature": (lambda found: _number(found) > 0, "a number above 0"),
        "deviation_factor": (lambda found: _number(found) >= 0, "a number, 0 or more"),
        "threads": (_is_count, "a whole number, 0 or more"),
        "special_tokens_in_text": (lambda found: found in ("refuse", "escape"), "refuse or escape"),
        "trust_remote_code": (lambda found: isinstance(found, bool), "true or false"),
        "cache_items": (_is_count, "a whole number, 0 or more"),
    }
    right, wanted = checks.get(key, (lambda found: isinstance(found, str), "a text"))
    if not right(value):
        raise InputError(path, f"is {value!r}; it should be {wanted}")


def _number(value: object) -> float:
    """NaN, which no comparison holds for, if it isn't a finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:
        return math.nan


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_names(value: object) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(isinstance(name, str) for name in value)


def _is_weights(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and not any(map(math.isnan, map(_number, value.values())))


def _check_names(specs: Sequence[Spec]) -> None:
    networks = [spec.name for spec in specs if isinstance(spec, ModelSpec)]
    names = [spec.name for spec in specs]
    for index, spec in enumerate(specs):
        if names.index(spec.name) != index:
            raise InputError(f"models[{index}].name", f"{spec.name!r} is another model's already")
        for member in spec.ensemble if isinstance(spec, EnsembleSpec) else ():
            if member not in networks:
                raise InputError(
                    f"models[{index}].ensemble", f"{member!r} is no model with a path in this file"
                )


def _check_places(specs: Sequence[Spec], roots: Roots) -> None:
    for index, spec in enumerate(specs):
        if isinstance(spec, ModelSpec) and not is_hub_id(spec.path) and (wrong := roots.misfit(spec.path)):
            raise InputError(f"models[{index}].path", wrong)
