"""Comparisons with live policies: the same numbers as with the same models loaded here."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm.loading import save_model
from services.policy.service import policy_service
from services.reference.service import reference_service
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions
from trainer.__main__ import main

PROMPTS = ["the film", "a dull", "what a", "not worth", "the story"]


@pytest.fixture(scope="module")
def other_policy(tiny_policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("other")
    model = AutoModelForCausalLM.from_pretrained(tiny_policy)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.3)
    save_model(model, AutoTokenizer.from_pretrained(tiny_policy), folder)
    return folder


@pytest.fixture(scope="module")
def address(tiny_policy, tiny_reward, other_policy):
    def serve(service, folder):
        return serve_in_background(lambda: service(ModelOptions(str(folder), "cpu", "float32", 1)))

    with (
        serve(policy_service, tiny_policy) as a,
        serve(reference_service, tiny_policy) as reference,
        serve(policy_service, other_policy) as b,
        serve(reward_service, tiny_reward) as reward,
    ):
        yield {"a": a.address, "reference": reference.address, "b": b.address, "reward": reward.address}


@pytest.fixture
def evaluate(tmp_path):
    """(exit code, evaluation.json) of the command for some sections."""

    def run(name, a, b, judge):
        (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": p}) for p in PROMPTS))
        (tmp_path / "c.toml").write_text(f"""
            [run]
            name = "{name}"
            directory = "{tmp_path}"
            threads = 1
            [a]
            {a}
            [b]
            {b}
            [data]
            prompts = "{tmp_path}/prompts.jsonl"
            [sampling]
            response_length = 6
            temperature = 0.8
            batch_size = 2
            [judges.rm]
            {judge}
            [best_of_n]
            judge = "rm"
            n = 2
            prompts = 3
            [placement]
            device = "cpu"
            dtype = "float32"
            """)
        code = main(["evaluate", str(tmp_path / "c.toml")])
        path = tmp_path / name / "evaluation.json"
        return code, json.loads(path.read_text()) if path.exists() else None

    return run


def test_live_policies_and_judge_give_what_the_same_models_give_here(
    evaluate, address, tiny_policy, other_policy, tiny_reward
):
    code, live = evaluate(
        "live",
        f'address = "{address["a"]}"\nreference = "{address["reference"]}"',
        f'address = "{address["b"]}"',
        f'reward = "{address["reward"]}"',
    )
    assert code == 0
    _, here = evaluate(
        "here", f'path = "{tiny_policy}"', f'path = "{other_policy}"', f'path = "{tiny_reward}"'
    )
    assert [row["b"] for row in live["samples"]] == [row["b"] for row in here["samples"]]
    for key in ("a", "b"):
        assert live[key]["weights_sha256"] == here[key]["weights_sha256"]
    assert live["kl"]["mean"] == pytest.approx(here["kl"]["mean"], abs=1e-4)
    one, other = ([row["scores"]["rm"] for row in each["samples"]] for each in (live, here))
    assert np.allclose(one, other, atol=1e-5)
    assert live["judges"]["rm"]["win_rate"] == here["judges"]["rm"]["win_rate"]
    assert live["judges"]["rm"]["best_of_n"] == here["judges"]["rm"]["best_of_n"]


def test_a_live_a_without_a_reference_has_no_kl_and_says_why(evaluate, address, other_policy, tiny_reward):
    code, evaluation = evaluate(
        "x", f'address = "{address["a"]}"', f'path = "{other_policy}"', f'path = "{tiny_reward}"'
    )
    assert code == 0
    assert evaluation["kl"] is None
    assert "a.reference would give" in evaluation["kl_reason"]


def test_a_reference_of_other_weights_is_refused(evaluate, address, tiny_policy, tiny_reward, capsys):
    wrong = f'address = "{address["b"]}"\nreference = "{address["reference"]}"'
    code, _ = evaluate("x", wrong, f'path = "{tiny_policy}"', f'path = "{tiny_reward}"')
    assert code == 64
    assert "serves other weights" in capsys.readouterr().err


def test_a_policy_that_is_not_there_is_unreachable(evaluate, tiny_policy, tiny_reward, capsys):
    code, _ = evaluate("x", f'path = "{tiny_policy}"', 'address = "127.0.0.1:9"', f'path = "{tiny_reward}"')
    assert code == 69
    assert "127.0.0.1:9" in capsys.readouterr().err


def test_a_reward_service_that_is_not_there_is_named_with_its_key(evaluate, tiny_policy, capsys):
    code, _ = evaluate("x", f'path = "{tiny_policy}"', f'path = "{tiny_policy}"', 'reward = "127.0.0.1:9"')
    assert code == 69
    assert "judges.rm.reward" in capsys.readouterr().err
