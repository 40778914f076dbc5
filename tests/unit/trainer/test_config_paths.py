"""Every place that a configuration names lies below the roots, and no key that names one is forgotten."""

import os
import typing
from pathlib import Path

import pytest
from pydantic import AfterValidator, BaseModel

from lm.roots import Roots
from trainer import __main__ as command, paths
from trainer.config import StageConfig, key_names, load_config
from trainer.errors import ConfigError
from trainer.evaluate.config import EvaluateConfig
from trainer.ppo.config import PPOConfig
from trainer.reward_model.config import RewardModelConfig
from trainer.sft.config import SFTConfig

STAGES: dict[type[StageConfig], str] = {
    SFTConfig: '[model]\npath = "in/m"\n[data]\ntrain = "in/t"\nvalidation = "in/v"\n',
    RewardModelConfig: '[model]\npath = "in/m"\n[data]\ntrain = "in/t"\n',
    PPOConfig: '[model]\npath = "in/m"\n[critic]\npath = "org/rm"\n[data]\nprompts = "in/p"\n'
    '[services]\npolicy = ["h:1"]\nreference = "h:2"\nreward = "h:3"\n'
    '[evaluation]\nprompts = "in/p"\n[evaluation.judges.x]\nplugin = "in/j.py:J"\n',
    EvaluateConfig: '[a]\npath = "in/a"\n[b]\npath = "org/b"\n[data]\nprompts = "in/p"\n'
    '[sampling]\nresponse_length = 1\n[judges.x]\nplugin = "module:Judge"\n',
}
NAMES_NO_PLACE = {
    *("run.name", "model.trainable", "critic.trainable", "model.device", "critic.device"),
    *("services.policy", "services.reference", "services.reward", "evaluation.best_by", "best_of_n.judge"),
    *("a.label", "a.address", "a.reference", "b.label", "b.address", "b.reference"),
    *("judges.NAME.reward", "evaluation.judges.NAME.reward", "placement.device", "placement.dtype"),
    # keyword arguments of a plug-in, which alone knows what they mean: docs/security.md says so
    *("judges.NAME.options", "evaluation.judges.NAME.options"),
}
"""Keys of any text that aren't paths. A new one goes here, or gets a type of trainer.paths."""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """The working directory, with in/ and runs/, the roots of all tests, and out/x.py."""
    for name in ("in", "runs", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "out/x.py").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path.resolve()


def write(stage, run='name = "r"'):
    path = Path("config.toml")
    path.write_text(f"[run]\n{run}\n{STAGES[stage]}", encoding="utf-8")
    return path


def load(stage, *overrides, environ=None, run='name = "r"'):
    return load_config(stage, write(stage, run), overrides, environ or {}, Roots(["in", "runs"]))


def problems(stage, *overrides, **more):
    with pytest.raises(ConfigError) as caught:
        load(stage, *overrides, **more)
    return list(caught.value.problems)


def outside(place, path):
    roots = f"the roots {place}/in, {place}/runs (--roots, PLAUDIT_ROOTS)"
    return f"{path!r} leads to no place below {roots}"


def keys(cls, prefix=""):
    """(key, what its type is made of), as `key_names` counts them."""
    for key, field in cls.model_fields.items():
        kinds = list(atoms(field.annotation))
        sections = (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
        child = next(sections, None)
        if child is None:
            yield prefix + key, {*kinds, *map(of_ours, field.metadata)}
        else:
            named = "NAME." if typing.get_origin(field.annotation) is dict else ""
            yield from keys(child, f"{prefix}{key}.{named}")


def atoms(kind):
    """What a type is made of: the members of unions and containers, and marks of ours."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        yield from (*atoms(arguments[0]), *map(of_ours, kind.__metadata__))
    elif origin is not typing.Literal:
        yield origin or kind
        for each in arguments:
            yield from atoms(each)


def of_ours(mark):
    checks = (paths._place, paths._model, paths._plugin, paths._run_directory)
    return "checked" if isinstance(mark, AfterValidator) and mark.func in checks else None


@pytest.mark.parametrize("stage", STAGES)
def test_every_key_that_could_name_a_place_is_checked_or_known_to_name_none(stage):
    found = dict(keys(stage))
    assert found.keys() == set(key_names(stage))
    loose = {key for key, kinds in found.items() if kinds & {str, Path, dict, typing.Any}}
    assert {key for key in loose if "checked" not in found[key]} <= NAMES_NO_PLACE
    assert not {key for key in NAMES_NO_PLACE if "checked" in found.get(key, ())}


def test_no_key_is_known_that_is_gone():
    assert set().union(*(key_names(stage) for stage in STAGES)) >= NAMES_NO_PLACE


def checked():
    for stage in STAGES:
        for key, kinds in keys(stage):
            if "checked" in kinds:
                yield pytest.param(stage, key.replace("NAME", "x"), id=f"{stage.__name__}-{key}")


@pytest.mark.parametrize(("stage", "key"), list(checked()))
def test_every_checked_key_is_refused_by_its_name(stage, key, place):
    """Whether --set names it or the environment: absolute, relative, by dots, or by a link."""
    (place / "in/link").symlink_to("../out")
    tail = ":Judge" if key.endswith("plugin") else ""
    for path in ("/etc/x.py", "../x.py", "in/../out/x.py", "in/link/x.py", "out/x.py", "in/link/../x.py"):
        assert f"{key}: {outside(place, path)}" in problems(stage, f"{key}={path}{tail}")
        environment = {"PLAUDIT_" + key.upper().replace(".", "__"): path + tail}
        assert f"{key}: {outside(place, path)}" in problems(stage, environ=environment)


@pytest.mark.parametrize("stage", STAGES)
def test_what_lies_below_the_roots_passes_and_is_what_it_was(stage):
    assert load(stage) == load_config(stage, write(stage), environ={})


@pytest.mark.parametrize("stage", STAGES)
def test_without_roots_any_place_will_do(stage):
    overrides = [f"{param.values[1]}=/etc/x.py:y" for param in checked() if param.values[0] is stage]
    overrides = [each for each in overrides if not each.endswith("judges.x.path=/etc/x.py:y")]
    load_config(stage, write(stage), overrides, {})


def test_all_places_are_told_at_once_beside_other_problems(place):
    found = problems(SFTConfig, "model.path=/m", "data.train=../t", "run.seed=-1")
    assert found == [
        "run.seed: input should be greater than or equal to 0, not -1",
        f"model.path: {outside(place, '/m')}",
        f"data.train: {outside(place, '../t')}",
    ]


class TestRunFolder:
    def test_need_not_be_there_yet(self):
        assert load(SFTConfig, "run.directory=runs/new/deeper").run.folder == Path("runs/new/deeper/r")

    def test_counts_where_it_is_the_default(self, place):
        load(SFTConfig)
        with pytest.raises(ConfigError) as caught:
            load_config(SFTConfig, write(SFTConfig), environ={}, roots=Roots(["in"]))
        assert caught.value.problems == (
            f"run.directory: 'runs' leads to no place below the roots {place}/in (--roots, PLAUDIT_ROOTS)",
        )

    @pytest.mark.parametrize("link", ["runs/r", "runs/r/checkpoints"])
    def test_is_not_led_away_by_a_link_in_its_place(self, link, place):
        (place / link).parent.mkdir(exist_ok=True)
        (place / link).symlink_to(place / "out")
        assert problems(SFTConfig) == [f"run.directory: {outside(place, link)}"]

    def test_of_a_name_that_is_none_is_one_problem(self):
        (problem,) = problems(SFTConfig, run='name = "a/b"')
        assert problem.startswith("run.name: ")


class TestNoPlaces:
    def test_hub_ids(self):
        assert load(SFTConfig, "model.path=org/model").model.path == "org/model"

    def test_a_folder_of_a_hub_ids_name_is_a_place(self, place):
        (place / "org/model").mkdir(parents=True)
        assert problems(SFTConfig, "model.path=org/model") == [f"model.path: {outside(place, 'org/model')}"]

    def test_modules_of_plugins(self):
        assert load(EvaluateConfig, "judges.x.plugin=package.judge:J").judges["x"].plugin == "package.judge:J"

    def test_a_zero_byte(self, place):
        (problem,) = problems(SFTConfig, 'data.train="in/\\u0000"')
        assert problem == f"data.train: {outside(place, 'in/' + chr(0))}"

    def test_braces_are_told_as_they_are(self, place):
        (problem,) = problems(SFTConfig, "data.train=/{0}{wrong}")
        assert problem == f"data.train: {outside(place, '/{0}{wrong}')}"


class TestCommand:
    @pytest.fixture(autouse=True)
    def unset(self, monkeypatch):
        monkeypatch.delenv("PLAUDIT_ROOTS", raising=False)

    def run(self, *arguments):
        return command.main(["sft", str(write(SFTConfig)), "--print-config", *arguments])

    def test_takes_roots_from_its_option(self, capsys, place):
        assert self.run("--set", "data.train=/t") == 0
        assert self.run("--roots", "in:runs") == 0
        assert self.run("--roots", "in:runs", "--set", "data.train=/t") == 64
        assert f"data.train: {outside(place, '/t')}" in capsys.readouterr().err

    def test_takes_roots_from_the_environment(self, monkeypatch, capsys):
        monkeypatch.setenv("PLAUDIT_ROOTS", os.pathsep.join(("in", "runs")))
        assert self.run() == 0
        assert self.run("--set", "run.directory=/elsewhere") == 64
        assert "run.directory: '/elsewhere' leads to no place" in capsys.readouterr().err

    def test_refuses_an_empty_entry(self, monkeypatch, capsys):
        assert self.run("--roots", "") == 64
        monkeypatch.setenv("PLAUDIT_ROOTS", "in:")
        assert self.run() == 64
        assert capsys.readouterr().err.count("has an empty entry") == 2
