"""--trust-remote-code: a model that brings Python of its own is refused, and read where the switch is on."""

import json
import logging
import shutil
import sys

import pytest
import torch
import transformers.dynamic_module_utils

from lm.errors import InputError, ModelLoadError
from lm.loading import load_causal_lm, load_reward_model
from lm.placement import choose_placement
from plaudit import PolicyClient, ReferenceClient, RewardClient
from services.policy.service import policy_service
from services.reference.service import reference_service
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions, run_command

FLOAT32 = choose_placement("cpu", "float32", 1)
CODE = """
from pathlib import Path

from transformers import AutoModel, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel

Path({ran!r}).touch()


class KestrelConfig(LlamaConfig):
    model_type = "kestrel"


class KestrelBody(LlamaModel):
    config_class = KestrelConfig

    def forward(self, *args, **kwargs):
        found = super().forward(*args, **kwargs)
        found.last_hidden_state = 2 * found.last_hidden_state
        return found


AutoModel.register(KestrelConfig, KestrelBody, exist_ok=True)


class KestrelModel({model}):
    config_class = KestrelConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = KestrelBody(config)
        self.post_init()
"""


def with_code(folder, target, kind, model):
    """The same model, which now says that it is read by Python beside it: that doubles its outputs."""
    shutil.copytree(folder, target)
    content = json.loads((target / "config.json").read_text())
    classes = {"AutoConfig": "kestrel.KestrelConfig", kind: "kestrel.KestrelModel"}
    changed = {"model_type": "kestrel", "architectures": ["KestrelModel"], "auto_map": classes}
    (target / "config.json").write_text(json.dumps(content | changed))
    (target / "kestrel.py").write_text(CODE.format(ran=str(target / "ran"), model=model))
    return target


@pytest.fixture(scope="module", autouse=True)
def modules_of_their_own(tmp_path_factory):
    """transformers copies such code into a folder of modules, and imports it from there."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("modules")
        patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(folder))
        patch.setattr(sys, "path", sys.path[:])
        yield


@pytest.fixture(scope="module")
def reward(tiny_reward, tmp_path_factory):
    target = tmp_path_factory.mktemp("foreign") / "reward"
    kind = "AutoModelForSequenceClassification"
    return with_code(tiny_reward, target, kind, "LlamaForSequenceClassification")


@pytest.fixture(scope="module")
def policy(tiny_policy, tmp_path_factory):
    target = tmp_path_factory.mktemp("foreign") / "policy"
    return with_code(tiny_policy, target, "AutoModelForCausalLM", "LlamaForCausalLM")


def options(folder, trusted):
    return ModelOptions(str(folder), "cpu", "float32", 1, trust_remote_code=trusted)


def raw_rewards(service):
    with serve_in_background(service) as server, RewardClient(server.address) as client:
        return [result.raw_reward for result in client.score([("a", "b"), ("the film", "is good")]).results]


@pytest.mark.parametrize("make", [reward_service, policy_service, reference_service])
def test_it_is_refused_by_default_and_the_message_names_the_switch(make, reward, policy):
    folder = reward if make is reward_service else policy
    with (
        pytest.raises(ModelLoadError, match=r"auto_map.*--trust-remote-code"),
        serve_in_background(lambda: make(options(folder, False))),
    ):
        pass
    assert not (folder / "ran").exists()


def test_a_reward_model_is_read_by_its_own_code_where_that_is_trusted(reward, tiny_reward, caplog):
    found = raw_rewards(lambda: reward_service(options(reward, True)))
    assert (reward / "ran").exists()
    (line,) = [each for each in caplog.records if each.name == "lm.loading"]
    assert line.levelno == logging.WARNING and str(reward) in line.getMessage()
    plain = raw_rewards(lambda: reward_service(options(tiny_reward, False)))
    assert found == pytest.approx([2 * each for each in plain], abs=1e-5)


def test_policy_and_reference_too(policy, tiny_policy):
    serving = serve_in_background(lambda: policy_service(options(policy, True)))
    with serving as server, PolicyClient(server.address) as client:
        client.generate(["a"], max_new_tokens=2)
    ours = load_causal_lm(str(tiny_policy), FLOAT32).model
    serving = serve_in_background(lambda: reference_service(options(policy, True)))
    with serving as server, ReferenceClient(server.address) as client:
        (found,) = client.compute_logprobs([[5, 6, 7]], [2]).values
    with torch.inference_mode():
        logits = 2 * ours(torch.tensor([[5, 6]])).logits[0, -1]
    assert found == pytest.approx([logits.log_softmax(-1)[7].item()], abs=1e-5)


def test_each_model_of_a_file_is_asked_about(reward, tiny_reward, tmp_path):
    file = tmp_path / "models.toml"
    plain = f'[[models]]\nname = "plain"\npath = "{tiny_reward}"\n'
    foreign = f'[[models]]\nname = "foreign"\npath = "{reward}"\n'
    file.write_text(f"{plain}{foreign}trust_remote_code = true\n")
    serving = serve_in_background(lambda: reward_service(options(file, False)))
    with serving as server, RewardClient(server.address) as client:
        (one,) = client.score([("a", "b")], model="foreign").results
        (other,) = client.score([("a", "b")], model="plain").results
    assert one.raw_reward == pytest.approx(2 * other.raw_reward, abs=1e-5)
    file.write_text(f"{plain}trust_remote_code = true\n{foreign}")
    with pytest.raises(ModelLoadError), serve_in_background(lambda: reward_service(options(file, False))):
        pass
    file.write_text(f"{foreign}trust_remote_code = 1\n")
    with pytest.raises(InputError, match=r"models\[0\]\.trust_remote_code: is 1; it should be true or false"):
        reward_service(options(file, False))


def test_pickles_stay_refused(reward, tmp_path):
    folder = shutil.copytree(reward, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match=r"pytorch_model\.bin could run any code"):
        load_reward_model(str(folder), FLOAT32, trust_remote_code=True)


def test_only_the_switch_turns_it_on(monkeypatch):
    seen = []

    def build(given):
        seen.append(given.trust_remote_code)
        raise InputError("--model", "is only parsed")

    monkeypatch.setenv("PLAUDIT_TRUST_REMOTE_CODE", "1")
    for more in ([], ["--trust-remote-code"]):
        assert run_command("echo", 0, build, ["--model", "m", *more]) == 64
    assert seen == [False, True]
    assert ModelOptions("m").trust_remote_code is False
