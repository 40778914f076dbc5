"""The trainer on a GPU: where its models are, and a PPO run against services that share the GPU with it.

The golden losses of the three stages are tested on both devices beside the stages, in tests/unit.
"""

import contextlib
import json
import math

import pytest
import torch

from lm.heads import reward_model_from
from lm.loading import load_causal_lm
from lm.placement import choose_placement
from services.policy.service import policy_service
from services.reference.service import reference_service
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions
from trainer.__main__ import main
from trainer.sft.dropout import with_dropout

KINDS = {"policy": policy_service, "reference": reference_service, "reward": reward_service}
PROMPTS = ["the film", "a dull", "what a", "not worth", "the story", "lifeless", "seeing", "good"]
STEPS = 4


def test_a_reward_model_is_where_its_policy_is(tiny_policy):
    policy = load_causal_lm(str(tiny_policy), choose_placement("cuda", "bfloat16"))
    reward = reward_model_from(policy.model, 1, 0, torch.Generator().manual_seed(0))
    assert {tensor.device.type for tensor in (*reward.parameters(), *reward.buffers())} == {"cuda"}


def test_dropout_leaves_nothing_behind_on_the_processor(tiny_policy):
    model = with_dropout(
        load_causal_lm(str(tiny_policy), choose_placement("cuda", "float32")).model,
        {"attention_dropout": 0.2},
    )
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cuda"}


def settings_of(folder, policy, reward, addresses, dtype):
    """A run of four steps; everything in `dtype`, wherever the trainer puts it by itself."""
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in PROMPTS))
    (folder / "ppo.toml").write_text(f"""
        [run]
        name = "run"
        directory = "{folder}"
        [model]
        path = "{policy}"
        dtype = "{dtype}"
        [critic]
        path = "{reward}"
        dtype = "{dtype}"
        learning_rate = 1e-3
        refit_head = true
        [services]
        policy = ["{addresses["policy"]}"]
        reference = "{addresses["reference"]}"
        reward = "{addresses["reward"]}"
        [data]
        prompts = "{folder}/prompts.jsonl"
        [sampling]
        response_length = 12
        [ppo]
        total_episodes = {STEPS * 8}
        batch_size = 8
        num_mini_batches = 2
        learning_rate = 1e-3
        missing_eos = "none"
        ema_decay = 0.9
        """)
    return str(folder / "ppo.toml")


@pytest.fixture
def ppo(tmp_path, tiny_policy, tiny_reward):
    """Runs PPO in a type, and gives the metrics of its steps."""

    def run(dtype):
        folders = {"policy": tiny_policy, "reference": tiny_policy, "reward": tiny_reward}
        with contextlib.ExitStack() as stack:
            addresses = {}
            for kind, folder in folders.items():
                options = ModelOptions(str(folder), "cuda", dtype, 1)
                make = lambda kind=kind, options=options: KINDS[kind](options)  # noqa: E731
                addresses[kind] = stack.enter_context(serve_in_background(make)).address
            assert main(["ppo", settings_of(tmp_path, tiny_policy, tiny_reward, addresses, dtype)]) == 0
        lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
        return [line for line in lines if "objective/kl" in line]

    return run


def test_ppo_starts_without_kl_and_learner_and_generator_agree(ppo, tmp_path):
    steps = ppo("float32")
    assert len(steps) == STEPS
    assert abs(steps[0]["objective/kl"]) < 1e-4
    assert abs(steps[-1]["objective/kl"]) > 0.01
    assert max(step["mismatch/logprob_abs_max"] for step in steps) < 1e-5
    assert all(step["policy_lag"] == 0 for step in steps)
    for folder in ("policy", "policy-ema"):
        model = load_causal_lm(str(tmp_path / "run" / folder), choose_placement("cpu", "float32")).model
        assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_ppo_in_the_type_that_a_gpu_takes_by_itself(ppo):
    steps = ppo("auto")
    assert len(steps) == STEPS
    for step in steps:
        assert all(
            math.isfinite(step[name]) for name in ("loss/policy_avg", "loss/value_avg", "objective/kl")
        )
        assert step["skipped_updates"] == 0
    assert steps[0]["mismatch/logprob_abs_mean"] < 0.05
