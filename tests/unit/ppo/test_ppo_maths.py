"""The numbers of the recipe, to the digit, and the functions against loops written by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from trainer.errors import CheckpointError, NotFinite
from trainer.optimisation import warmup_factor
from trainer.ppo.advantages import gae, whiten
from trainer.ppo.ema import MovingAverage
from trainer.ppo.kl import AdaptiveKL, FixedKL, k1, k2, k3, make_controller
from trainer.ppo.loss import explained_variance, importance_weights, policy_loss, value_loss
from trainer.ppo.rewards import apply_missing_eos, kl_per_token, shape_rewards

REAL_3 = torch.ones(1, 3, dtype=torch.bool)
REWARDS = (-0.004, 0.002, 1.51)
VALUES = (0.2, 0.5, 0.8)
ADVANTAGES = (1.223675, 0.9765, 0.71)


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def same(actual: torch.Tensor, *expected: float) -> None:
    torch.testing.assert_close(actual[0], row(*expected)[0], rtol=0, atol=5.1e-7)


class TestRewards:
    def test_numbers(self):
        kl = kl_per_token(row(-1, -0.5, -2), row(-1.2, -0.4, -1.5), REAL_3)
        same(kl, 0.2, -0.1, -0.5)
        assert float(kl.sum()) == pytest.approx(-0.4)
        same(shape_rewards(torch.tensor([1.5]).double(), kl, REAL_3, 0.02), *REWARDS)

    def test_score_stands_at_the_last_real_token_of_each_row(self):
        mask = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
        rewards = shape_rewards(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3, 3), mask, 0.02)
        assert rewards.tolist() == [[1, 0, 0], [0, 2, 0], [0, 0, 3]]

    def test_score_stands_at_the_last_real_token_beyond_a_gap(self):
        mask = torch.tensor([[1, 0, 1, 0]], dtype=torch.bool)
        rewards = shape_rewards(torch.tensor([5.0]), torch.ones(1, 4), mask, 1.0)
        assert rewards.tolist() == [[-1, 0, 4, 0]]

    def test_a_response_without_tokens_has_no_place_for_a_score(self):
        with pytest.raises(ValueError, match="no tokens"):
            shape_rewards(torch.ones(2), torch.zeros(2, 2), torch.tensor([[True, True], [False, False]]), 0.1)

    def test_what_stands_in_the_padding_is_no_reward(self):
        mask = torch.tensor([[True, False]])
        kl = kl_per_token(row(-1, math.nan), row(-2, math.inf), mask)
        assert kl.tolist() == [[1, 0]]
        assert shape_rewards(torch.zeros(1), row(1, math.nan), mask, 0.5).tolist() == [[-0.5, 0]]

    @pytest.mark.parametrize(
        ("mode", "expected"),
        [("replace", [2.0, -1.0]), ("subtract", [2.0, 2.0]), ("none", [2.0, 3.0])],
    )
    def test_missing_eos(self, mode, expected):
        scores = apply_missing_eos(torch.tensor([2.0, 3.0]), torch.tensor([True, False]), mode, 1.0)
        assert scores.tolist() == expected


class TestAdvantages:
    def test_numbers(self):
        advantages, returns = gae(row(*REWARDS), row(*VALUES), REAL_3, 1.0, 0.95)
        same(advantages, *ADVANTAGES)
        same(returns, 1.423675, 1.4765, 1.51)

    def test_lambda_one_is_reward_to_go_less_value(self):
        same(gae(row(*REWARDS), row(*VALUES), REAL_3, 1.0, 1.0)[0], 1.308, 1.012, 0.71)

    def test_bootstrap(self):
        bootstrap = torch.tensor([0.9]).double()
        advantages, _ = gae(row(*REWARDS), row(*VALUES), REAL_3, 1.0, 0.95, bootstrap)
        same(advantages, 2.035925, 1.8315, 1.61)

    def test_bootstrap_enters_a_padded_row_at_its_own_end(self):
        mask = torch.tensor([[True, True, True, False, False]])
        advantages, _ = gae(
            row(*REWARDS, 9, 9), row(*VALUES, 9, 9), mask, 1.0, 0.95, torch.tensor([0.9]).double()
        )
        same(advantages, 2.035925, 1.8315, 1.61, 0, 0)

    def test_a_gap_of_foreign_tokens_is_as_if_it_were_not_there(self):
        mask = torch.tensor([[True, False, False, True, True]])
        advantages, returns = gae(row(-0.004, 7, 7, 0.002, 1.51), row(0.2, 7, 7, 0.5, 0.8), mask, 1.0, 0.95)
        same(advantages, 1.223675, 0, 0, 0.9765, 0.71)
        same(returns, 1.423675, 0, 0, 1.4765, 1.51)

    def test_whitening(self):
        same(whiten(row(*ADVANTAGES), REAL_3), 1.209101, 0.030710, -1.239811)
        same(whiten(row(*REWARDS), REAL_3, shift_mean=False), -0.208648, -0.200224, 1.916872)

    def test_whitening_is_over_the_batch_not_the_row(self):
        mask = torch.tensor([[True, True], [True, False]])
        same(whiten(torch.tensor([[1.223675, 0.9765], [0.71, 99.0]]).double(), mask), 1.209101, 0.030710)


class TestLosses:
    OLD, NEW, SIGNS = row(-1, -0.5, -2), row(-0.7, -0.6, -1.7), row(1, -1, -1)

    def test_policy(self):
        share = policy_loss(self.NEW, self.OLD, self.SIGNS, REAL_3, 3.0)
        ratios = (1.349859, 0.904837, 1.349859)
        assert float(share.loss.detach()) == pytest.approx(0.351565, abs=5e-7)
        assert float(share.clipfrac) == pytest.approx(1 / 3)
        assert float(share.approxkl) == pytest.approx(0.031667, abs=5e-7)
        assert float(share.ratio_excess) == pytest.approx(sum(ratios) / 3 - 1, abs=1e-6)
        assert float(share.ratio_excess_sq) == pytest.approx(sum((r - 1) ** 2 for r in ratios) / 3, abs=1e-6)

    def test_policy_gradient_is_zero_where_clipped_and_minus_a_rho_elsewhere(self):
        new = self.NEW.clone().requires_grad_()
        policy_loss(new, self.OLD, self.SIGNS, REAL_3, 3.0).loss.backward()
        same(new.grad, 0, math.exp(-0.1) / 3, math.exp(0.3) / 3)

    def test_value(self):
        values = row(0.5, 0.45, 1.3).requires_grad_()
        share = value_loss(values, row(0.2, 0.5, 0.8), row(1, 0.5, 0.9), REAL_3, 3.0)
        assert float(share.loss.detach()) == pytest.approx(0.087083, abs=5e-7)
        assert float(share.clipfrac) == pytest.approx(1 / 3)
        share.loss.backward()
        same(values.grad, 0, -0.05 / 3, 0.4 / 3)

    def test_explained_variance(self):
        old, returns = row(0.2, 0.5, 0.8), row(1, 0.5, 0.9)
        assert explained_variance(old, returns, REAL_3) == pytest.approx(-1.714286, abs=5e-7)
        lhp = 1 - (old - returns).square().mean() / returns.var(unbiased=False)
        assert float(lhp) == pytest.approx(-3.642857, abs=5e-7)
        assert math.isnan(explained_variance(old, torch.ones(1, 3), REAL_3))

    def test_truncated_importance_weights(self):
        weights = importance_weights(row(-1, -0.5, -3), row(-1.1, -2, -1), cap=2.0)
        same(weights, 1.105171, 2, 0.135335)

    def test_decoupled_objective_is_the_clipped_loss_weighed(self):
        behaviour, proximal, now = row(-2), row(-1.8), row(-1.5)
        weights = importance_weights(proximal, behaviour, cap=5.0)
        mask = torch.ones(1, 1, dtype=torch.bool)
        share = policy_loss(now, proximal, row(1), mask, 1.0, weights_BT=weights)
        assert float(share.loss.detach()) == pytest.approx(-1.465683, abs=5e-7)
        assert float(policy_loss(now, behaviour, row(1), mask, 1.0).loss) == pytest.approx(-1.2)

    def test_aggregation_is_by_token_of_the_minibatch(self):
        mask = torch.tensor([[True, False, False], [True, True, True]])
        advantages = -torch.tensor([[1.0, 9, 9], [0.2, 0.2, 0.2]])
        together = policy_loss(torch.zeros(2, 3), torch.zeros(2, 3), advantages, mask, 4.0).loss
        apart = [
            policy_loss(
                torch.zeros(1, 3), torch.zeros(1, 3), advantages[i : i + 1], mask[i : i + 1], 4.0
            ).loss
            for i in range(2)
        ]
        assert float(together) == pytest.approx(0.4) == float(sum(apart))


class TestKL:
    P, Q = torch.tensor([0.5, 0.3, 0.2]).double().log(), torch.tensor([0.4, 0.4, 0.2]).double().log()

    def test_estimators(self):
        expectations = [float((self.P.exp() * k(self.P, self.Q)).sum()) for k in (k1, k2, k3)]
        assert expectations == pytest.approx([0.025267, 0.024862, 0.025267], abs=5e-7)
        assert k3(self.P, self.Q).tolist() == pytest.approx([0.023144, 0.045651, 0.0], abs=5e-7)

    @pytest.mark.parametrize(
        ("start", "kl", "episodes", "after"),
        [(0.15, 9, 64, 0.150192), (0.15, 6.3, 64, 0.150048), (0.02, 3, 512, 0.0197952)],
    )
    def test_adaptive(self, start, kl, episodes, after):
        controller = make_controller(start, adaptive=True, target=6.0, horizon=10_000.0)
        controller.update(kl, episodes)
        assert controller.value == pytest.approx(after, abs=5e-9)

    def test_adaptive_goes_on_from_its_state(self):
        first = AdaptiveKL(0.15, 6.0, 300.0)
        first.update(9.0, 64)
        second = AdaptiveKL(0.15, 6.0, 300.0)
        second.load_state_dict(first.state_dict())
        assert second.value == first.value != 0.15

    def test_adaptive_has_nothing_to_follow_without_a_number(self):
        with pytest.raises(NotFinite, match="nan"):
            AdaptiveKL(0.1, 6.0, 100.0).update(math.nan, 1)

    def test_fixed(self):
        controller = make_controller(0.02, adaptive=False, target=6.0, horizon=1.0)
        controller.update(100.0, 1000)
        assert controller.value == 0.02
        controller.load_state_dict({"value": 0.5})
        assert controller.value == 0.02
        assert FixedKL(0.3).state_dict() == {"value": 0.3}


class TestSchedules:
    def test_warmup(self):
        factors = [warmup_factor(i, 10) for i in range(12)]
        expected = [0.1, 0.19, 0.28, 0.37, 0.46, 0.55, 0.64, 0.73, 0.82, 0.91, 1, 1]
        assert factors == pytest.approx(expected)
        assert warmup_factor(0, 0) == 1.0

    def test_average(self):
        weights = {"w": torch.ones(1, dtype=torch.float64)}
        average = MovingAverage(0.992, weights)
        weights["w"] = torch.full((1,), 2.0, dtype=torch.float64)
        for _ in range(3):
            average.update(weights)
        assert float(average.tensors["w"]) == pytest.approx(1.023809, abs=5e-7)
        assert round(math.log(2) / -math.log(0.992)) == 86
        with pytest.raises(CheckpointError, match="other parameters"):
            average.load_state_dict({"v": torch.ones(1)})


# --- Against loops in numpy, on random batches with ragged rows and rubbish in the padding ---


@st.composite
def batches(draw) -> tuple[np.random.Generator, np.ndarray]:
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    mask = np.zeros((len(lengths), max(lengths) + draw(st.integers(0, 2))), dtype=bool)
    for index, length in enumerate(lengths):
        mask[index, :length] = True
    return np.random.default_rng(draw(st.integers(0, 2**32))), mask


def noise(rng: np.random.Generator, mask: np.ndarray, scale: float = 1.0) -> np.ndarray:
    values = rng.normal(size=mask.shape) * scale
    values[~mask] = np.nan  # whoever looks there is found out
    return values


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(np.asarray(array)) for array in arrays]


@given(batches(), st.sampled_from([1.0, 0.9]), st.sampled_from([0.0, 0.95, 1.0]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_gae_is_the_sum_over_deltas(batch, gamma, lam, bootstrapped):
    rng, mask = batch
    rewards, values = noise(rng, mask), noise(rng, mask)
    last = rng.normal(size=len(mask)) if bootstrapped else np.zeros(len(mask))
    expected = np.zeros(mask.shape)
    for b, length in enumerate(mask.sum(axis=1)):
        v = [*values[b, :length], last[b]]
        deltas = [rewards[b, t] + gamma * v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            expected[b, t] = sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, length))
    args = tensors(rewards, values, mask)
    advantages, returns = gae(*args, gamma, lam, torch.from_numpy(last) if bootstrapped else None)
    np.testing.assert_allclose(advantages.numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(returns.numpy(), np.where(mask, expected + values, 0), atol=1e-12)


@given(batches(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_whitening_is_of_real_tokens_only(batch, shift_mean):
    rng, mask = batch
    values = noise(rng, mask)
    real = values[mask]
    scaled = (real - real.mean()) / math.sqrt(((real - real.mean()) ** 2).sum() / len(real) + 1e-8)
    expected = np.zeros(mask.shape)
    expected[mask] = scaled if shift_mean else scaled + real.mean()
    actual = whiten(*tensors(values, mask), shift_mean=shift_mean)
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-9)


@given(batches(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_policy_loss_and_gradient_token_by_token(batch, weighed):
    rng, mask = batch
    old, new, advantages = noise(rng, mask), noise(rng, mask), noise(rng, mask)
    new = old + new * 0.3
    weights = np.abs(noise(rng, mask)) if weighed else np.ones(mask.shape)
    divisor = mask.sum() + 3.0
    loss, clipped, gradient = 0.0, 0, np.zeros(mask.shape)
    for b, t in zip(*np.nonzero(mask), strict=True):
        ratio = math.exp(new[b, t] - old[b, t])
        plain, bounded = -advantages[b, t] * ratio, -advantages[b, t] * min(max(ratio, 0.8), 1.2)
        loss += weights[b, t] * max(plain, bounded)
        clipped += bounded > plain
        gradient[b, t] = 0.0 if bounded > plain else weights[b, t] * plain / divisor
    new_t, old_t, advantages_t, mask_t, weights_t = tensors(new, old, advantages, mask, weights)
    new_t.requires_grad_()
    share = policy_loss(
        new_t, old_t, advantages_t, mask_t, divisor, weights_BT=weights_t if weighed else None
    )
    share.loss.backward()
    assert float(share.loss.detach()) == pytest.approx(loss / divisor, abs=1e-12)
    assert float(share.clipfrac) == pytest.approx(clipped / divisor)
    np.testing.assert_allclose(new_t.grad.numpy(), gradient, atol=1e-12)


@given(batches())
@settings(max_examples=60, deadline=None)
def test_value_loss_and_gradient_token_by_token(batch):
    rng, mask = batch
    old, new, returns = noise(rng, mask, 0.3), noise(rng, mask, 0.3), noise(rng, mask)
    divisor = float(mask.sum())
    loss, clipped, gradient = 0.0, 0, np.zeros(mask.shape)
    for b, t in zip(*np.nonzero(mask), strict=True):
        bounded = min(max(new[b, t], old[b, t] - 0.2), old[b, t] + 0.2)
        plain, held = (new[b, t] - returns[b, t]) ** 2, (bounded - returns[b, t]) ** 2
        loss += 0.5 * max(plain, held)
        clipped += held > plain
        gradient[b, t] = 0.0 if held > plain else (new[b, t] - returns[b, t]) / divisor
    new_t, old_t, returns_t, mask_t = tensors(new, old, returns, mask)
    new_t.requires_grad_()
    share = value_loss(new_t, old_t, returns_t, mask_t, divisor)
    share.loss.backward()
    assert float(share.loss.detach()) == pytest.approx(loss / divisor, abs=1e-12)
    assert float(share.clipfrac) == pytest.approx(clipped / divisor)
    np.testing.assert_allclose(new_t.grad.numpy(), gradient, atol=1e-12)


@given(batches(), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_rewards_row_by_row(batch, kl_coef):
    rng, mask = batch
    old, ref = noise(rng, mask), noise(rng, mask)
    scores = rng.normal(size=len(mask))
    expected = np.zeros(mask.shape)
    for b, length in enumerate(mask.sum(axis=1)):
        for t in range(length):
            expected[b, t] = -kl_coef * (old[b, t] - ref[b, t]) + (scores[b] if t == length - 1 else 0)
    old_t, ref_t, mask_t, scores_t = tensors(old, ref, mask, scores)
    actual = shape_rewards(scores_t, kl_per_token(old_t, ref_t, mask_t), mask_t, kl_coef)
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-12)
