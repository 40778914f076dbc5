"""Configuration: TOML, then environment, then `--set`, into one frozen pydantic model.

    [run]                                  in the file
    PLAUDIT_RUN__SEED=1                    in the environment: PLAUDIT_SECTION__KEY
    --set run.seed=1                       on the command line; the last one wins

Values from the environment and `--set` are read as TOML (`1e-4`, `true`, `["a", "b"]`) and, where they are
none, as plain text. Environment names without `__`, or of sections that this stage doesn't have, are left
alone: one environment may serve several stages. Relative paths are relative to the working directory.

Sources of defaults: IG Ouyang et al. 2022 (InstructGPT); N Huang et al. 2023; N+ Huang et al. 2024; LHP
openai/lm-human-preferences. "Ours" marks what none of them states.
"""

import difflib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from lm.roots import Roots
from trainer.errors import ConfigError
from trainer.paths import CHECKPOINTS, OUTSIDE, ModelPath, RunDirectory

TomlValue: TypeAlias = Any
TrackerName = Literal["tensorboard", "wandb"]
ENVIRONMENT_PREFIX = "PLAUDIT_"


class Section(BaseModel):
    """A table of the TOML file: strict types, unknown keys refused, never changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    volatile: ClassVar[frozenset[str]] = frozenset()
    """Keys that may differ when a run is resumed: they change neither losses nor weights."""


class RunSection(Section):
    """[run]: where a run lives and how it is kept."""

    volatile = frozenset(
        {"directory", "threads", "checkpoint_every", "keep_checkpoints", "disk_patience", "trackers"}
    )

    name: Annotated[str, Field(pattern=r"^[\w][\w.-]*$")]
    """Names the run; its files go to `directory`/`name`."""
    directory: RunDirectory = Path("runs")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Every random choice follows from it."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads of torch; 0 takes what the cgroup grants."""
    checkpoint_every: Annotated[int, Field(ge=0)] = 50
    """Steps between checkpoints; 0 saves only when stopped and at the end."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    disk_patience: Annotated[float, Field(ge=0)] = 3600.0
    """Seconds that the run waits for a disk that is full or read-only, before it ends with 75."""
    trackers: tuple[TrackerName, ...] = ()
    """Tools of others that are told what metrics.jsonl and evaluations hold; docs/metrics.md."""

    @property
    def folder(self) -> Path:
        """Where everything of the run is written."""
        return self.directory / self.name

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints are."""
        return self.folder / CHECKPOINTS


class StageConfig(Section):
    """The configuration of a stage: each says where its run is kept."""

    run: RunSection


class ModelSection(Section):
    """[model]: what is trained, and which of its parameters."""

    volatile = frozenset({"device", "path"})  # what is in the path has a digest

    path: ModelPath
    """A folder or hub id in Hugging Face format."""
    trainable: str | list[str] = "all"
    """"all", "top:N" (the last N layers, final norm and head), or regular expressions of names."""
    dtype: Literal["auto", "float64", "float32", "bfloat16"] = "auto"
    """Of the computation; trained parameters are kept in float32 (float64 if that is asked for)."""
    device: str = "auto"

    @field_validator("trainable")
    @classmethod
    def _known_rule(cls, rule: str | list[str]) -> str | list[str]:
        """Refuses what lm.trainable would refuse after minutes of loading."""
        if isinstance(rule, str) and rule != "all":
            kind, _, count = rule.partition(":")
            if kind != "top" or not count.isdecimal() or int(count) < 1:
                raise ValueError('is "all", "top:N" with N ≥ 1, or a list of regular expressions')
        return rule


class AdamSection(Section):
    """Keys of every section that has an optimiser: Adam with the recipe's constants (RECIPE section 0)."""

    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """IG appendix C."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """IG appendix C. At 0.999 PyTorch's ε acts smaller than TF's (N, Adam section): keep it."""
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-5
    """N+ detail 9."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Clip of the gradient's norm, over all that the optimiser trains. LHP."""
    micro_batch_size: Annotated[int, Field(ge=1)] = 8
    """Sequences in one forward pass: memory and speed. The result is the same for any. Ours."""


@dataclass(frozen=True)
class RunOptions:
    """What the command line says beside the configuration."""

    resume: bool = False
    """Go on from the newest whole checkpoint; start afresh where there is none."""
    dry_run: bool = False
    """Check data (and services), print statistics, train nothing."""
    address: str | None = None
    """HOST:PORT of TrainerService."""
    metrics_address: str | None = None
    """HOST:PORT of Prometheus metrics."""
    insecure: bool = False
    """Allow addresses other than loopback without TLS."""
    accept_changes: frozenset[str] = frozenset()
    """Keys of configuration and digests that may differ from what the checkpoint was made with."""
    health_address: str | None = None
    """HOST:PORT of a plaintext port with nothing but health."""
    tls_cert: Path | None = None
    """PEM of the certificate of TrainerService and metrics, or a directory; plaintext without it."""
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    """PEM of the CAs of which every caller must have a certificate."""
    tokens: Path | None = None
    """Who may call TrainerService: docs/security.md."""
    oidc_issuer: str | None = None
    """Whose JWTs it takes, too; with the two below."""
    oidc_audience: str | None = None
    oidc_jwks: str | None = None
    metrics_plaintext: bool = False
    """Whether metrics are in plaintext with TLS, too."""
    reflection: bool = True


ConfigT = TypeVar("ConfigT", bound=Section)


def load_config(
    cls: type[ConfigT],
    path: Path,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
    roots: Roots | None = None,
) -> ConfigT:
    """Reads `path` and lays environment and `overrides` ("a.b=c") over it.

    All places that it names must lie below `roots`, if given. Raises ConfigError with every problem at once.
    """
    tree = _read_toml(path)
    for name, value in _environment_settings(cls, environ):
        _assign(tree, name, value)
    for override in overrides:
        _assign(tree, *_parse_override(override))
    try:
        # JSON mode is strict about types, yet takes "a/b" for a Path and an array for a tuple.
        return cls.model_validate_json(json.dumps(tree, default=str), context=roots)
    except ValidationError as error:
        raise ConfigError(_problems(cls, error), str(path)) from None
    except (ValueError, RecursionError) as error:  # of json.dumps
        raise ConfigError([f"holds a value that can't be: {error}"], str(path)) from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"can't be read: {error.strerror}"], str(path)) from None
    except (ValueError, RecursionError) as error:  # also thousands of digits, lists in lists in lists
        raise ConfigError([f"is not TOML: {error}"], str(path)) from None


def _environment_settings(cls: type[Section], environ: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    for name, text in sorted(environ.items()):
        keys = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        if name.startswith(ENVIRONMENT_PREFIX) and len(keys) > 1 and keys[0] in cls.model_fields:
            yield ".".join(keys), _parse_value(text)


def _parse_override(override: str) -> tuple[str, Any]:
    name, equals, text = override.partition("=")
    if not equals or not all(name.strip().split(".")):
        raise ConfigError([f"--set {override}: is written section.key=value"])
    return name.strip(), _parse_value(text.strip())


def _parse_value(text: str) -> TomlValue:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _assign(tree: dict[str, Any], name: str, value: TomlValue) -> None:
    *sections, key = name.split(".")
    for section in sections:
        child = tree.setdefault(section, {})
        if not isinstance(child, dict):
            raise ConfigError.at(name, f"{section} is a value, not a section")
        tree = child
    tree[key] = value


def _problems(cls: type[Section], error: ValidationError) -> list[str]:
    """pydantic's findings as "section.key: what", one line for each key."""
    findings: dict[str, list[str]] = {}
    inputs: dict[str, str] = {}
    for each in error.errors():
        loc = [part for part in each["loc"] if not _is_union_member(part)]
        name = ".".join(map(str, loc))
        findings.setdefault(name, []).append(_describe(cls, loc, each))
        if each["type"] not in ("extra_forbidden", "missing", OUTSIDE):
            inputs[name] = f", not {json.dumps(each['input'], default=str)}"
    return [f"{name}: {' or '.join(what)}{inputs.get(name, '')}" for name, what in findings.items()]


def _is_union_member(part: int | str) -> bool:
    """pydantic puts the tried member of a union ("str", "list[str]") into the location."""
    return part in ("str", "int", "float", "bool") or str(part).startswith(("list[", "literal["))


def _describe(cls: type[Section], loc: Sequence[int | str], error: ErrorDetails) -> str:
    if error["type"] == "extra_forbidden":
        return f"unknown key{_suggestion(cls, loc)}"
    if error["type"] == "missing":
        return "is required"
    message = error["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _suggestion(cls: type[Section], loc: Sequence[int | str]) -> str:
    *path, key = map(str, loc)
    siblings = _section_at(cls, path)
    close = difflib.get_close_matches(key, siblings.model_fields if siblings else (), n=1)
    elsewhere = [name for name in key_names(cls) if name.rpartition(".")[2] == key]
    found = (close + elsewhere)[:1]
    return f"; did you mean {found[0]}?" if found else ""


def _section_at(cls: type[BaseModel], path: Sequence[str]) -> type[BaseModel] | None:
    if not path:
        return cls
    child, named = _section_type(cls, path[0])
    return _section_at(child, path[2:] if named else path[1:]) if child else None


def _section_type(parent: type[BaseModel], key: str) -> tuple[type[BaseModel] | None, bool]:
    """The section under `key`, or None for a plain value; and whether it is a table of named sections."""
    field = parent.model_fields.get(key)
    kind = field.annotation if field else None
    options = [kind, *getattr(kind, "__args__", ())]
    found = [each for each in options if isinstance(each, type) and issubclass(each, BaseModel)]
    return (found[0] if found else None), getattr(kind, "__origin__", None) is dict


def key_names(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key that `cls` knows, as "section.key"; NAME stands where the user chooses a name."""
    for key in cls.model_fields:
        child, named = _section_type(cls, key)
        if child is None:
            yield prefix + key
        else:
            yield from key_names(child, f"{prefix}{key}.NAME." if named else f"{prefix}{key}.")


def render_toml(config: Section) -> str:
    """The effective configuration, defaults included, as TOML; unset optional keys stand as comments."""
    return "\n".join(_render_table(json.loads(config.model_dump_json()), "")).strip() + "\n"


def _render_table(table: Mapping[str, Any], name: str) -> Iterator[str]:
    if name:
        yield f"\n[{name}]"
    for key, value in table.items():
        if value is None:
            yield f"# {key} is not set"
        elif not isinstance(value, dict):
            yield f"{key} = {json.dumps(value, ensure_ascii=False)}"
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _render_table(value, f"{name}.{key}" if name else key)
