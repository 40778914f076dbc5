import tomllib
from pathlib import Path

import pytest
from pydantic import Field

from trainer.config import ModelSection, RunSection, Section, key_names, load_config, render_toml
from trainer.errors import ConfigError
from trainer.identity import Change, config_changes, config_digest, digest_changes, identity, refuse_changes
from trainer.ppo.config import CriticSection, PPOSection
from trainer.reward_model.config import RewardModelConfig
from trainer.sft.config import SFTConfig


class Judge(Section):
    volatile = frozenset({"address"})
    path: str = ""
    address: str = ""


class Whole(Section):
    run: RunSection
    model: ModelSection
    ppo: PPOSection = PPOSection()
    judges: dict[str, Judge] = Field(default_factory=dict)
    pair: tuple[int, int] = (1, 2)


MINIMAL = '[run]\nname = "a"\n[model]\npath = "m"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL)
    return path


def problems(
    path: Path, overrides: list[str] | None = None, environ: dict[str, str] | None = None
) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(Whole, path, overrides or [], environ or {})
    return list(caught.value.problems)


def test_defaults_come_from_the_sections(file: Path):
    config = load_config(Whole, file, environ={})
    assert config.run.seed == 0
    assert config.run.folder == Path("runs/a")
    assert config.run.checkpoints == Path("runs/a/checkpoints")
    assert config.ppo.kl_coef == 0.02


def test_environment_beats_the_file_and_set_beats_both(file: Path):
    file.write_text(MINIMAL.replace('"a"', '"a"\nseed = 1'))
    environ = {"PLAUDIT_RUN__SEED": "2", "PLAUDIT_RUN__THREADS": "3"}
    config = load_config(Whole, file, ["run.seed=4"], environ)
    assert (config.run.seed, config.run.threads) == (4, 3)


def test_environment_leaves_alone_what_is_no_setting_of_this_stage(file: Path):
    environ = {"PLAUDIT_TOKEN": "t", "PLAUDIT_SERVICES__POLICY": "x", "HOME": "/", "RUN__SEED": "9"}
    assert load_config(Whole, file, environ=environ).run.seed == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1e-4", 1e-4), ("3", 3.0), (" 0.5 ", 0.5)],
)
def test_set_reads_numbers_as_toml(file: Path, text: str, expected: float):
    assert load_config(Whole, file, [f"ppo.kl_coef={text}"], {}).ppo.kl_coef == expected


def test_set_reads_lists_booleans_and_plain_text(file: Path):
    overrides = [
        "model.trainable=['a$', 'b']",
        "ppo.whiten_rewards=true",
        "run.directory=/x/y z",
        "model.path=a=b",
    ]
    config = load_config(Whole, file, overrides, {})
    assert config.model.trainable == ["a$", "b"]
    assert config.ppo.whiten_rewards is True
    assert config.run.directory == Path("/x/y z")
    assert config.model.path == "a=b"


def test_an_unknown_key_comes_with_a_suggestion(file: Path):
    assert problems(file, ["ppo.kl_coeff=0.1"]) == ["ppo.kl_coeff: unknown key; did you mean kl_coef?"]


def test_a_key_of_another_section_is_found(file: Path):
    assert problems(file, ["run.learning_rate=1"]) == [
        "run.learning_rate: unknown key; did you mean ppo.learning_rate?"
    ]


def test_a_misspelt_section_comes_with_a_suggestion(file: Path):
    assert problems(file, ["modell.x=1"]) == ["modell: unknown key; did you mean model?"]


def test_a_key_in_a_named_section_comes_with_a_suggestion(file: Path):
    assert problems(file, ["judges.mine.pat=x"]) == ["judges.mine.pat: unknown key; did you mean path?"]


def test_a_key_like_nothing_has_no_suggestion(file: Path):
    assert problems(file, ["ppo.zzzzqq=1"]) == ["ppo.zzzzqq: unknown key"]


def test_all_problems_are_listed_at_once(file: Path):
    file.write_text('[run]\nseed = -1\nthreads = "two"\n[model]\npath = 3\n')
    found = problems(file, ["ppo.gama=1"])
    assert len(found) == 5
    assert "run.name: is required" in found
    assert 'run.threads: input should be a valid integer, not "two"' in found
    assert "ppo.gama: unknown key; did you mean gamma?" in found


def test_types_are_strict(file: Path):
    assert problems(file, ["run.seed=1.5"]) == ["run.seed: input should be a valid integer, not 1.5"]
    assert len(problems(file, ["run.seed=true"])) == 1
    assert len(problems(file, ["ppo.kl_coef='0.1'"])) == 1
    assert len(problems(file, ["ppo.kl_coef=nan"])) == 1
    assert len(problems(file, ["ppo.kl_coef=inf"])) == 1


def test_a_union_is_one_problem(file: Path):
    assert len(problems(file, ["model.trainable=3"])) == 1


@pytest.mark.parametrize("rule", ["top:0", "top:", "top:x", "some", "al"])
def test_a_rule_that_is_none_is_refused_before_anything_loads(file: Path, rule: str):
    assert problems(file, [f"model.trainable={rule}"])[0].startswith('model.trainable: is "all", "top:N"')


@pytest.mark.parametrize("rule", ["all", "top:6"])
def test_rules(file: Path, rule: str):
    assert load_config(Whole, file, [f"model.trainable={rule}"], {}).model.trainable == rule


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x"])
def test_a_run_name_is_one_folder(file: Path, name: str):
    assert len(problems(file, [f"run.name='{name}'"])) == 1


@pytest.mark.parametrize("override", ["run.seed", "=3", "run.=3", ".seed=3"])
def test_a_malformed_override_is_refused(file: Path, override: str):
    assert problems(file, [override]) == [f"--set {override}: is written section.key=value"]


def test_an_override_below_a_value_is_refused(file: Path):
    assert problems(file, ["run.seed=1", "run.seed.x=2"]) == ["run.seed.x: seed is a value, not a section"]


def test_files_that_are_absent_or_no_toml(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no\.toml: can't be read: No such file"):
        load_config(Whole, tmp_path / "no.toml", environ={})
    bad = tmp_path / "bad.toml"
    bad.write_text("[run\n")
    with pytest.raises(ConfigError, match=r"bad\.toml: is not TOML: .*line 1"):
        load_config(Whole, bad, environ={})
    bad.write_bytes(b'[run]\nname = "\xff"\n')
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config(Whole, bad, environ={})


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.trainable=['a\\\\.\\d', 'é\"']", "ppo.target_kl=0.1", "judges.mine.path=x", "run.name=b"],
        ["ppo.learning_rate=1e-5"],
    ],
)
def test_rendered_toml_reads_back_as_the_same_configuration(file: Path, tmp_path: Path, overrides: list[str]):
    config = load_config(Whole, file, overrides, {})
    again = tmp_path / "again.toml"
    again.write_text(render_toml(config))
    assert load_config(Whole, again, environ={}) == config


def test_rendered_toml_holds_defaults_and_says_what_is_not_set(file: Path):
    text = render_toml(load_config(Whole, file, environ={}))
    assert tomllib.loads(text)["ppo"]["kl_coef"] == 0.02
    assert "# target_kl is not set" in text


def test_configuration_never_changes_after_loading(file: Path):
    config = load_config(Whole, file, environ={})
    with pytest.raises(ValueError, match="frozen"):
        config.run.seed = 3  # type: ignore[misc]


def test_key_names_reach_into_sections():
    names = set(key_names(Whole))
    assert {"run.seed", "ppo.kl_coef", "judges.NAME.path", "pair"} <= names
    assert "ppo" not in names


def test_identity_leaves_volatile_keys_out(file: Path):
    one = load_config(Whole, file, ["run.checkpoint_every=3", "model.device=cpu", "run.threads=1"], {})
    other = load_config(Whole, file, ["run.checkpoint_every=9", "run.directory=elsewhere"], {})
    assert identity(one) == identity(other)
    assert config_digest(one) == config_digest(other)
    assert len(config_digest(one)) == 64


def test_identity_changes_with_what_changes_losses(file: Path):
    one = load_config(Whole, file, environ={})
    other = load_config(Whole, file, ["ppo.learning_rate=1e-3"], {})
    assert config_digest(one) != config_digest(other)


def test_changes_since_the_checkpoint_are_shown(file: Path):
    saved = identity(load_config(Whole, file, environ={}))
    changed = load_config(Whole, file, ["ppo.learning_rate=1e-3", "run.seed=1", "run.threads=7"], {})
    rate, seed = config_changes(changed, saved)
    assert str(rate) == "ppo.learning_rate: 5e-06 when it was saved → 0.001 now"
    assert (seed.key, seed.saved, seed.now) == ("run.seed", 0, 1)
    assert config_changes(load_config(Whole, file, environ={}), saved) == []


def test_changes_of_content_name_what_holds_it(file: Path):
    config = load_config(Whole, file, environ={})
    saved = {"config": "c", "model.path": "1" * 64, "data.prompts": "2" * 64, "tokenizer": "3" * 64}
    now = {"model.path": "4" * 64, "tokenizer": "3" * 64}
    gone, model = digest_changes(config, now, saved)
    assert str(gone) == "data.prompts: sha256 222222222222… when it was saved → null now"
    assert str(model) == (
        f"model.path ({config.model.path}): sha256 111111111111… when it was saved → sha256 444444444444… now"
    )


def test_only_what_is_named_is_accepted(caplog: pytest.LogCaptureFixture):
    changes = [Change("ppo.kl_coef", 0.02, 0.5), Change("data.prompts", "a", "b", "prompts.jsonl")]
    with pytest.raises(ConfigError) as caught:
        refuse_changes(changes, ["data.prompts", "ppo"])
    told, advice = caught.value.problems
    assert told == "ppo.kl_coef: 0.02 when it was saved → 0.5 now"
    assert advice.endswith("--accept-changes data.prompts,ppo,ppo.kl_coef")
    assert caplog.text == ""
    refuse_changes(changes, ["data.prompts", "ppo.kl_coef"])
    assert "accepted: ppo.kl_coef: 0.02 when it was saved → 0.5 now" in caplog.text
    assert "accepted: data.prompts (prompts.jsonl): " in caplog.text


def test_error_texts_name_their_source():
    error = ConfigError(["a.b: wrong", "c.d: too"], "x.toml")
    assert str(error) == "x.toml: a.b: wrong; c.d: too"
    assert error.exit_code == 64


@pytest.mark.parametrize("cls", [SFTConfig, RewardModelConfig, Whole])
def test_every_stage_renders_and_suggests(cls: type[Section], file: Path):
    """The sections of all stages obey the same rules."""
    text = MINIMAL + ('[data]\ntrain = "t.jsonl"\n' if "data" in cls.model_fields else "")
    file.write_text(text)
    again = file.with_name("again.toml")
    again.write_text(render_toml(load_config(cls, file, environ={})))
    assert load_config(cls, again, environ={}) == load_config(cls, file, environ={})


def test_every_key_of_the_stages_has_a_plain_or_documented_name():
    for cls in (SFTConfig, RewardModelConfig, CriticSection):
        assert all(part.islower() for name in key_names(cls) for part in name.split("."))
