"""Our own reward service keeps every promise that `plaudit check` looks at, whatever model it serves."""

import pytest

from plaudit.conformance import conformance
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions

SEVERAL = """
[[models]]
name = "one"
path = "{tiny}"
[[models]]
name = "other"
path = "{foreign}"
compare_temperature = 2.0
[[models]]
name = "mean"
ensemble = ["one", "other"]
combine = "mean"
[[models]]
name = "lowest"
ensemble = ["one", "other"]
combine = "min"
[[models]]
name = "careful"
ensemble = ["one", "other"]
combine = "mean_minus_std"
deviation_factor = 0.5
"""


def failed(address, model=""):
    return [finding for finding in conformance(address, model, 30) if finding.verdict == "fail"]


@pytest.fixture(scope="module")
def several(tiny_reward, foreign_reward, tmp_path_factory):
    """Two models of different tokenizers, and ensembles of them, in one server."""
    path = tmp_path_factory.mktemp("models") / "models.toml"
    path.write_text(SEVERAL.format(tiny=tiny_reward, foreign=foreign_reward))
    with serve_in_background(lambda: reward_service(ModelOptions(str(path), "cpu", "float32", 1))) as server:
        yield server.address


@pytest.mark.parametrize("model", ["", "one", "other", "mean", "lowest", "careful"])
def test_every_model_of_a_server_conforms(several, model):
    assert failed(several, model) == []


def test_components_of_an_ensemble_are_looked_at(several):
    verdicts = {finding.check: finding.verdict for finding in conformance(several, "careful", 30)}
    assert verdicts["components"] == "pass"
    assert verdicts["token ids"] == "skip", "its members read different tokens"


def test_a_server_of_one_model_conforms(tiny_reward):
    options = ModelOptions(str(tiny_reward), "cpu", "float32", 1)
    with serve_in_background(lambda: reward_service(options)) as server:
        assert failed(server.address) == []
