"""TOML that says anything: the trainer's configurations and the reward server's file of models."""

import contextlib

import pytest
from fuzz_settings import fuzzed
from hypothesis import given, strategies as st
from measured_memory import bounded_memory

from lm.errors import InputError
from services.reward.config import model_specs
from services.rpc.command import ModelOptions
from services.rpc.options import OptionError
from services.rpc.tokens import parse_tokens
from trainer.config import key_names, load_config, render_toml
from trainer.errors import ConfigError
from trainer.evaluate.config import EvaluateConfig
from trainer.ppo.config import PPOConfig
from trainer.reward_model.config import RewardModelConfig
from trainer.sft.config import SFTConfig

STAGES = (SFTConfig, RewardModelConfig, PPOConfig, EvaluateConfig)
VALUES = {
    "text": '"a"',
    "empty": '""',
    "NUL": '"\\u0000"',
    "path": '"../../etc/passwd"',
    "true": "true",
    "minus": "-1",
    "zero": "0",
    "half": "0.5",
    "no number": "nan",
    "infinite": "-inf",
    "beyond a double": "1e400",
    "beyond 64 bits": "9" * 30,
    "400 digits": "9" * 400,
    "5000 digits": "9" * 5000,
    "5000 hex digits": "0x" + "f" * 5000,
    "date": "1979-05-27T07:32:00Z",
    "mixed list": '[1, "a", [0.5]]',
    "table": "{ a = { b = 1 } }",
    "deep list": "[" * 2000 + "]" * 2000,
    "deep table": "{a=" * 2000 + "1" + "}" * 2000,
    "deep and nearly read": "[" * 300 + "]" * 300,
    "no value": "=",
    "unclosed": '"""',
    "not TOML": "\x00",
    "long": '"' + "x" * 100_000 + '"',
}
SPECS = ("name", "path", "device", "dtype", "threads", "weights", "compare_temperature", "cache_items")
SPECS += ("ensemble", "combine", "deviation_factor", "unknown")
values = st.sampled_from(list(VALUES.values()))


@pytest.fixture(scope="module")
def toml(tmp_path_factory):
    """toml(text) → path; each overwrites the one before."""
    path = tmp_path_factory.mktemp("fuzz") / "config.toml"

    def write(text):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def load(stage, path, overrides=(), environ=None):
    """What is read can be written, as checkpoints and --print-config do."""
    size = path.stat().st_size + sum(map(len, [*overrides, *(environ or {}).values()]))
    with bounded_memory(size), contextlib.suppress(ConfigError):
        render_toml(load_config(stage, path, overrides, environ or {}))


def keys(stage):
    return st.sampled_from(
        sorted({name.replace("NAME", "a") for name in key_names(stage)} | {"run", "x.y.z"})
    )


@pytest.mark.parametrize("stage", STAGES)
def test_any_configuration(stage, toml):
    settings = st.lists(st.tuples(keys(stage), values), max_size=5)

    @fuzzed
    @given(file=settings, overrides=settings, environment=settings, noise=st.text(max_size=10))
    def run(file, overrides, environment, noise):
        path = toml("\n".join(f"{key} = {value}" for key, value in file) + noise)
        named = {f"PLAUDIT_{key.upper().replace('.', '__')}": value for key, value in environment}
        load(stage, path, [f"{key}={value}" for key, value in overrides], named)

    run()


@pytest.mark.parametrize("value", VALUES)
def test_hostile_values_in_file_command_line_and_environment(value, toml):
    text = VALUES[value]
    for key in ("run.seed", "run.name", "model.trainable", "data.train"):
        load(SFTConfig, toml(f"{key} = {text}"))
        load(SFTConfig, toml(""), [f"{key}={text}"])
        load(SFTConfig, toml(""), (), {"PLAUDIT_" + key.upper().replace(".", "__"): text})


@fuzzed
@given(
    tables=st.lists(st.dictionaries(st.sampled_from(SPECS), values, max_size=6), max_size=3),
    noise=st.binary(max_size=8),
)
def test_any_file_of_models(tables, noise, toml):
    text = "".join(
        "[[models]]\n" + "".join(f"{key} = {value}\n" for key, value in table.items()) for table in tables
    )
    with bounded_memory(len(text)), contextlib.suppress(InputError):
        model_specs(ModelOptions(str(toml(text.encode() + noise))))


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("key", SPECS)
def test_hostile_values_in_a_file_of_models(key, value, toml):
    own = {"name": '"a"', "path": '"b"', key: VALUES[value]}
    text = "[[models]]\n" + "".join(f"{name} = {found}\n" for name, found in own.items())
    with bounded_memory(len(text)), contextlib.suppress(InputError):
        model_specs(ModelOptions(str(toml(text))))


ENTRY = ("name", "sha256", "certificate", "scopes", "expires", "requests_per_second", "in_flight", "unknown")


@fuzzed
@given(
    default=st.dictionaries(st.sampled_from(ENTRY), values, max_size=3),
    entries=st.lists(st.dictionaries(st.sampled_from(ENTRY), values, max_size=6), max_size=3),
    noise=st.binary(max_size=8),
)
def test_any_tokens_file(default, entries, noise):
    tables = [("[default]", default), *(("[[token]]", entry) for entry in entries)]
    lines = [line for name, table in tables for line in (name, *(f"{key} = {table[key]}" for key in table))]
    with bounded_memory(sum(map(len, lines))), contextlib.suppress(OptionError):
        parse_tokens("\n".join(lines).encode() + noise, "--tokens f")


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("key", ENTRY)
def test_hostile_values_in_a_tokens_file(key, value):
    own = {"name": '"a"', "sha256": f'"{"0" * 64}"', "scopes": '["score"]', key: VALUES[value]}
    text = "[[token]]\n" + "".join(f"{name} = {found}\n" for name, found in own.items())
    with bounded_memory(len(text)), contextlib.suppress(OptionError):
        parse_tokens(text.encode(), "--tokens f")
