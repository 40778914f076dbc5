"""The critic: which position it reads, on which scale, how its head is refitted, and what moves it."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerBase

from lm.errors import InputError, ModelLoadError
from lm.loading import LoadedReward, load_reward_model
from lm.placement import Placement
from lm.rewards import sequence_scores
from trainer.errors import CheckpointError
from trainer.ppo.advantages import gae
from trainer.ppo.config import CriticSection
from trainer.ppo.critic import ValueCritic
from trainer.ppo.loss import explained_variance
from trainer.ppo.ridge import ridge
from trainer.ppo.rollout import Prompt, Response, Rollout

F64 = torch.float64
LENGTHS = ((3, 4), (1, 1), (5, 2), (2, 6))


def place(dtype: torch.dtype) -> Placement:
    return Placement(torch.device("cpu"), dtype, 1, "for a test")


def rollout_of(lengths: Any = LENGTHS, seed: int = 0, upto: int = 300) -> Rollout:
    rng = np.random.default_rng(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.integers(3, upto, count).tolist())

    pairs = [(ids(prompt), ids(response)) for prompt, response in lengths]
    prompts = tuple(Prompt(index, ids) for index, (ids, _) in enumerate(pairs))
    responses = tuple(Response(ids, "", (-1.0,) * len(ids), True, ((0, 0, len(ids)),), 0) for _, ids in pairs)
    return Rollout.of(prompts, responses)


@pytest.fixture
def make_critic(tiny_reward: Path):
    def make(dtype: torch.dtype = F64, **settings: Any) -> ValueCritic:
        config = CriticSection(path=str(tiny_reward), **({"learning_rate": 1e-2} | settings))
        return ValueCritic(load_reward_model(str(tiny_reward), place(dtype)), config, place(dtype))

    return make


class TestValues:
    @pytest.mark.parametrize("micro", [1, 3, 8])
    def test_are_read_at_the_position_before_each_token(self, make_critic, tiny_reward, micro):
        critic, rollout = make_critic(micro_batch_size=micro), rollout_of()
        values_BT, after_B = critic.values(rollout)
        reward = load_reward_model(str(tiny_reward), place(F64))
        for b, (sequence, start) in enumerate(zip(rollout.sequences, rollout.starts, strict=True)):
            for t in range(len(sequence) - start):
                before = sequence[: start + t]
                score = sequence_scores(reward.model, [before]).item()
                assert values_BT[b, t].item() == pytest.approx((score - 0.25) / 2.0, abs=1e-9), (b, t)
            whole = sequence_scores(reward.model, [sequence]).item()
            assert after_B[b].item() == pytest.approx((whole - 0.25) / 2.0, abs=1e-9)
        assert not values_BT[~rollout.loss_mask_BT].any()

    def test_neighbours_do_not_enter(self, make_critic):
        critic, rollout = make_critic(), rollout_of()
        values_BT, _ = critic.values(rollout)
        for row, (_, length) in enumerate(LENGTHS):
            alone_BT, _ = critic.values(rollout.select([row]))
            torch.testing.assert_close(alone_BT[0], values_BT[row, :length], rtol=0, atol=1e-12)

    def test_are_float32_under_bfloat16(self, make_critic):
        values_BT, after_B = make_critic(torch.bfloat16).values(rollout_of())
        exact_BT, _ = make_critic(F64).values(rollout_of())
        assert values_BT.dtype == after_B.dtype == torch.float32
        torch.testing.assert_close(values_BT.double(), exact_BT, rtol=0, atol=0.05)


class TestUpdate:
    def returns(self, rollout: Rollout) -> torch.Tensor:
        rng = torch.Generator().manual_seed(0)
        noise_BT = torch.randn(rollout.loss_mask_BT.shape, generator=rng, dtype=F64)
        return noise_BT.where(rollout.loss_mask_BT, math.nan)

    def test_gradient_is_the_same_for_every_split_and_that_of_the_formula(self, make_critic):
        rollout, rows = rollout_of(), [0, 2, 3]
        returns_BT = self.returns(rollout)
        divisor = float(rollout.loss_mask_BT[rows].sum())
        found = []
        for micro in (1, 2, 3):
            critic = make_critic(micro_batch_size=micro, max_grad_norm=1e9, vf_coef=0.5)
            old_BT, _ = critic.values(rollout)
            measures = critic.update(rollout, rows, old_BT, returns_BT, divisor)
            found.append(critic.state_dict()["model"]["optimiser"]["state"])
            squares = (old_BT - returns_BT)[rows][rollout.loss_mask_BT[rows]].square()
            assert measures["loss/value_avg"] == pytest.approx(float(squares.mean()) / 2)
            assert measures["val/clipfrac_avg"] == 0
            assert measures["lr/value"] == 1e-2
        for index, entry in found[0].items():
            for other in found[1:]:
                torch.testing.assert_close(other[index]["exp_avg"], entry["exp_avg"], rtol=0, atol=1e-9)
        bias_gradient = float(0.5 * (old_BT - returns_BT)[rows][rollout.loss_mask_BT[rows]].mean())
        names = list(critic.state_dict()["model"]["weights"])
        bias = found[0][names.index("score.bias")]["exp_avg"] / 0.1
        assert float(bias) == pytest.approx(bias_gradient)

    def test_brings_values_nearer_to_the_returns(self, make_critic):
        critic, rollout = make_critic(cliprange_value=10.0, vf_coef=1.0), rollout_of()
        returns_BT, old_BT = self.returns(rollout), critic.values(rollout)[0]
        losses = [
            critic.update(rollout, range(4), old_BT, returns_BT, 13.0)["loss/value_avg"] for _ in range(20)
        ]
        assert losses[-1] < 0.2 * losses[0]

    def test_a_gradient_that_is_not_finite_changes_nothing(self, make_critic):
        critic, rollout = make_critic(), rollout_of()
        before = copy.deepcopy(critic.state_dict())
        old_BT, _ = critic.values(rollout)
        measures = critic.update(rollout, [0], old_BT, torch.full_like(old_BT, math.inf), 4.0)
        assert not math.isfinite(measures["grad_norm/value"])
        for name, tensor in critic.state_dict()["model"]["weights"].items():
            assert torch.equal(tensor, before["model"]["weights"][name])
        assert critic.state_dict()["model"]["optimiser"]["state"] == {}
        measures = critic.update(rollout, [0], old_BT, self.returns(rollout), 4.0)
        assert math.isfinite(measures["grad_norm/value"])

    def test_trains_what_the_rule_says_and_always_the_head(self, make_critic):
        names = set(make_critic(trainable="top:1").state_dict()["model"]["weights"])
        assert {"score.weight", "score.bias", "model.norm.weight"} < names
        assert not any(name.startswith(("model.layers.0.", "model.embed")) for name in names)
        with pytest.raises(InputError, match="top:9"):
            make_critic(trainable="top:9")


class TestRefit:
    def outcome(self, critic: ValueCritic, rollout: Rollout) -> float:
        """Explained variance where the reward, at the end, is the prompt's last token."""
        rewards_BT = torch.zeros(rollout.loss_mask_BT.shape, dtype=F64)
        for row, (prompt, response) in enumerate(zip(rollout.prompts, rollout.responses, strict=True)):
            rewards_BT[row, len(response.token_ids) - 1] = float(prompt.token_ids[-1])
        critic.prepare(rollout, rewards_BT)
        values_BT, _ = critic.values(rollout)
        _, returns_BT = gae(rewards_BT, torch.zeros_like(values_BT), rollout.loss_mask_BT, 1.0, 1.0)
        return explained_variance(values_BT, returns_BT, rollout.loss_mask_BT)

    def test_head_predicts_on_other_rollouts_too(self, make_critic):
        rollouts = [rollout_of([(1 + n % 4, 1 + n % 3) for n in range(90)], seed, 8) for seed in (0, 1)]
        critic = make_critic(refit_head=True)
        assert self.outcome(make_critic(), rollouts[0]) < 0.05
        assert self.outcome(critic, rollouts[0]) > 0.2
        assert self.outcome(critic, rollouts[1]) > 0.1

    def test_only_once(self, make_critic):
        critic, rollout = make_critic(refit_head=True), rollout_of()
        for scale in (1.0, 5.0):
            critic.prepare(rollout, scale * rollout.loss_mask_BT.double())
            seen = critic.values(rollout)[0]
            if scale == 1.0:
                first = seen
        assert torch.equal(seen, first)

    def test_a_resumed_critic_knows_that_it_was_done(self, make_critic):
        critic, resumed, rollout = make_critic(refit_head=True), make_critic(refit_head=True), rollout_of()
        critic.prepare(rollout, rollout.loss_mask_BT.double())
        resumed.load_state_dict(critic.state_dict())
        resumed.prepare(rollout, 9.0 * rollout.loss_mask_BT.double())
        assert torch.equal(resumed.values(rollout)[0], critic.values(rollout)[0])


class TestFitness:
    def test_other_parameters_are_refused(self, make_critic):
        with pytest.raises(CheckpointError, match="other parameters"):
            make_critic().load_state_dict(make_critic(trainable="top:1").state_dict())

    def test_a_rule_that_selects_nothing_is_told_at_the_critics_key(self, make_critic):
        with pytest.raises(InputError, match=r"^critic\.trainable: top:3 is not in top:1\.\.top:2"):
            make_critic(trainable="top:3")

    def test_another_architecture_will_do(self, foreign_reward):
        reward = load_reward_model(str(foreign_reward), place(F64))
        critic = ValueCritic(reward, CriticSection(path="x"), place(F64))
        values_BT, _ = critic.values(rollout_of([(2, 3)] * 2).select([1]))
        assert values_BT.shape == (1, 3)

    def test_an_encoder_sees_what_is_to_come(self, tiny_reward):
        reward = load_reward_model(str(tiny_reward), place(F64))
        config = BertConfig(
            vocab_size=300, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
            num_labels=1,
        )  # fmt: skip
        encoder = replace(reward, model=BertForSequenceClassification(config), model_id="an-encoder")
        with pytest.raises(ModelLoadError, match="an-encoder: a critic needs a causal model"):
            ValueCritic(encoder, CriticSection(path="x"), place(F64))

    def test_a_score_layer_of_another_kind(self, tiny_reward):
        reward: LoadedReward = load_reward_model(str(tiny_reward), place(F64))
        assert isinstance(reward.tokenizer, PreTrainedTokenizerBase)
        reward.model.score = nn.Sequential(nn.Linear(32, 1))
        with pytest.raises(ModelLoadError, match="linear score layer; this is a Sequential"):
            ValueCritic(reward, CriticSection(path="x"), place(F64))


class TestRidge:
    @given(st.integers(0, 999), st.integers(2, 40), st.integers(1, 8))
    @settings(max_examples=30, deadline=None)
    def test_solves_the_normal_equations_for_one_of_its_strengths(self, seed, count, width):
        rng = np.random.default_rng(seed)
        features, targets = rng.normal(size=(count, width)) + 3, rng.normal(size=count) - 1
        weight_H, bias = ridge(torch.tensor(features), torch.tensor(targets), [i // 3 for i in range(count)])
        x, y = features - features.mean(0), targets - targets.mean()
        unit = (x**2).sum() / count / width
        solutions = [
            np.linalg.solve(x.T @ x + 10.0**e * count * unit * np.eye(width), x.T @ y) for e in range(-4, 2)
        ]
        assert min(np.abs(weight_H.numpy() - s).max() for s in solutions) < 1e-8
        assert bias == pytest.approx(targets.mean() - features.mean(0) @ weight_H.numpy())

    def test_finds_a_line_and_trusts_noise_little(self):
        rng = np.random.default_rng(0)
        features = torch.tensor(rng.normal(size=(200, 3)))
        line = features @ torch.tensor([1.0, -2.0, 0.5]).double() + 4
        weight_H, bias = ridge(features, line, list(range(200)))
        assert weight_H.tolist() == pytest.approx([1, -2, 0.5], abs=1e-3)
        assert bias == pytest.approx(4, abs=1e-3)
        noise_H, _ = ridge(features, torch.tensor(rng.normal(size=200)), list(range(200)))
        assert float(noise_H.norm()) < 0.05

    def test_one_group_leaves_nothing_to_check_on(self):
        features, targets = torch.eye(4), torch.tensor([1.0, 2.0, 3.0, 4.0])
        weight_H, bias = ridge(features, targets, [0] * 4)
        assert float(weight_H.abs().max()) < 0.2
        assert bias == pytest.approx(2.5, abs=0.1)

    def test_constant_features_give_the_mean(self):
        weight_H, bias = ridge(torch.ones(4, 2), torch.tensor([1.0, 2.0, 3.0, 4.0]), [0, 1, 2, 3])
        assert weight_H.tolist() == [0, 0]
        assert bias == 2.5
