"""docs/recipe.md against the configuration: every training key with its default, in both directions."""

import re
import tomllib

import pytest
from doc_pages import DOCS, codes

from trainer.config import AdamSection, ModelSection, RunSection
from trainer.ppo.config import CriticSection, PPOSection, SamplingSection
from trainer.reward_model.config import BackboneSection, RewardModelSection
from trainer.sft.config import SFTSection

TEXT = (DOCS / "recipe.md").read_text(encoding="utf-8")
TRAINING = {
    "sft": SFTSection,
    "reward_model": RewardModelSection,
    "ppo": PPOSection,
    "critic": CriticSection,
    "sampling": SamplingSection,
}
SECTIONS = {**TRAINING, "*": AdamSection, "run": RunSection, "model": BackboneSection}
SHARED = set(AdamSection.model_fields) - {"micro_batch_size"}
"""Documented once, as *.key, and the same in every section."""


def documented():
    """ "section.key" → its default as TOML reads it; None where the page says that it is unset."""
    found = {}
    for name, value in re.findall(r"`([a-z_*]+\.\w+) = ([^`]+)`", TEXT):
        assert name not in found, f"{name} stands twice"
        found[name] = tomllib.loads(f"value = {value}")["value"]
    return found | dict.fromkeys(re.findall(r"`([a-z_]+\.\w+)` unset", TEXT))


def default(name):
    section, _, key = name.partition(".")
    field = SECTIONS[section].model_fields[key]
    value = field.get_default(call_default_factory=True)
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", documented())
def test_a_key_has_the_default_that_the_page_says(name):
    assert documented()[name] == default(name)


@pytest.mark.parametrize("section", TRAINING)
def test_every_key_of_a_training_section_is_on_the_page(section):
    where_it_runs = set(ModelSection.model_fields)
    keys = set(TRAINING[section].model_fields) - SHARED - where_it_runs
    assert {f"{section}.{key}" for key in keys} <= documented().keys()


def test_adams_constants_are_the_same_in_every_section_with_an_optimiser():
    for cls in TRAINING.values():
        shared = SHARED & cls.model_fields.keys()
        assert all(cls.model_fields[key].default == AdamSection.model_fields[key].default for key in shared)
        assert not shared or shared == SHARED


def test_keys_in_the_prose_exist():
    """`ppo.kl_coef` without a value, anywhere on the page."""
    for name in codes(TEXT):
        match = re.fullmatch(r"(sft|reward_model|ppo|critic|sampling|model|run)\.(\w+)", name)
        if match:
            assert match[2] in SECTIONS[match[1]].model_fields, name
