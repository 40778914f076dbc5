"""The file of models: what it means, and what is wrong with it in one line."""

import pytest

from lm.errors import InputError
from services.reward.config import EnsembleSpec, ModelSpec, model_specs
from services.rpc.command import ModelOptions

GOOD = """
[[models]]
name = "helpful"
path = "org/helpful"
cache_items = 10
compare_temperature = 2

[[models]]
name = "attributes"
path = "org/attributes"
threads = 2
dtype = "float32"
weights = { helpfulness = 1, verbosity = -0.5 }

[[models]]
name = "careful"
ensemble = ["helpful", "attributes"]
combine = "mean_minus_std"
deviation_factor = 0.5
"""


def specs(tmp_path, text, **changes):
    file = tmp_path / "models.toml"
    file.write_text(text, encoding="utf-8")
    return model_specs(ModelOptions(str(file), **changes))


def test_a_path_is_one_model_by_the_name_of_reward():
    assert model_specs(ModelOptions("org/rm", "cpu", "bfloat16", 3)) == [
        ModelSpec("reward", "org/rm", "cpu", "bfloat16", 3)
    ]


def test_a_file_holds_several_in_their_order(tmp_path):
    helpful, attributes, careful = specs(tmp_path, GOOD, threads=1, device="cpu")
    assert helpful == ModelSpec("helpful", "org/helpful", "cpu", "auto", 1, {}, 2, 10)
    assert attributes == ModelSpec(
        "attributes", "org/attributes", "cpu", "float32", 2, {"helpfulness": 1, "verbosity": -0.5}
    )
    assert careful == EnsembleSpec("careful", ("helpful", "attributes"), "mean_minus_std", 0.5)


def test_weights_are_put_in_the_order_of_the_outputs():
    spec = ModelSpec("m", "p", weights={"b": 2, "a": -1.5})
    assert spec.attribute_weights(("a", "b", "c")) == (-1.5, 2.0, 0.0)
    assert ModelSpec("m", "p").attribute_weights(("reward",)) == (1.0,)


@pytest.mark.parametrize(
    ("weights", "field"),
    [({}, "models.m.weights"), ({"z": 1}, "models.m.weights.z")],
    ids=["none", "unknown"],
)
def test_weights_that_do_not_fit_the_model(weights, field):
    with pytest.raises(InputError, match="a, b") as caught:
        ModelSpec("m", "p", weights=weights).attribute_weights(("a", "b"))
    assert caught.value.field == field


ONE = '[[models]]\nname = "a"\npath = "p"\n'
WRONG = {
    "not TOML": ("[[models", "--model", "isn't TOML"),
    "no models": ("", "--model", r"should hold \[\[models\]\] tables"),
    "a table, not tables": ("[models]\nname = 1", "--model", r"\[\[models\]\]"),
    "something else too": (f"other = 1\n{ONE}", "--model", "nothing else"),
    "no name": ('[[models]]\npath = "p"', "models[0].name", "is missing"),
    "no path": ('[[models]]\nname = "a"', "models[0].path", "is missing"),
    "unknown key": (f"{ONE}pth = 1", "models[0].pth", "did you mean path"),
    "far key": (f"{ONE}zzz = 1", "models[0].zzz", "use name, path"),
    "name of another": (f"{ONE}{ONE}", "models[1].name", "another model's already"),
    "a number for a text": ('[[models]]\nname = "a"\npath = 3', "models[0].path", "should be a text"),
    "negative threads": (f"{ONE}threads = -1", "models[0].threads", "0 or more"),
    "a truth for a count": (f"{ONE}threads = true", "models[0].threads", "whole number"),
    "temperature 0": (f"{ONE}compare_temperature = 0", "models[0].compare_temperature", "above 0"),
    "weights of text": (f'{ONE}weights = {{ a = "x" }}', "models[0].weights", "attribute = number"),
    "weights not finite": (f"{ONE}weights = {{ a = nan }}", "models[0].weights", "attribute = number"),
    "one member": (f'{ONE}[[models]]\nname = "e"\nensemble = ["a"]', "models[1].ensemble", "at least two"),
    "unknown member": (
        f'{ONE}[[models]]\nname = "e"\nensemble = ["a", "z"]', "models[1].ensemble", "'z' is no model"
    ),
    "unknown rule": (
        f'{ONE}[[models]]\nname = "e"\nensemble = ["a", "a"]\ncombine = "max"',
        "models[1].combine",
        "one of mean, min, mean_minus_std",
    ),
    "negative factor": (
        f'{ONE}[[models]]\nname = "e"\nensemble = ["a", "a"]\ndeviation_factor = -1',
        "models[1].deviation_factor",
        "0 or more",
    ),
    "an ensemble of ensembles": (
        f'{ONE}[[models]]\nname = "e"\nensemble = ["a", "a"]\n[[models]]\nname = "f"\nensemble = ["a", "e"]',
        "models[2].ensemble",
        "'e' is no model with a path",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "field", "words"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_named(tmp_path, text, field, words):
    with pytest.raises(InputError, match=words) as caught:
        specs(tmp_path, text)
    assert caught.value.field == field


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="can't be read: No such file"):
        model_specs(ModelOptions(str(tmp_path / "none.toml")))
