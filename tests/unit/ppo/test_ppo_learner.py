"""The learner: gradients against HF's own forward, whatever the split; skips, stops, mixes, averages."""

import copy
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor

from trainer.errors import CheckpointError, NotFinite
from trainer.ppo.learner import Batch
from trainer.ppo.rollout import Prompt, Response, Rollout

F64 = torch.float64
UNCLIPPED = {"max_grad_norm": 1e9}


def rollout_of(lengths: Sequence[tuple[int, int]], seed: int = 0, vocabulary: int = 300) -> Rollout:
    """Random prompts and responses of given (prompt, response) lengths."""
    rng = torch.Generator().manual_seed(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, vocabulary, (count,), generator=rng).tolist())

    prompts = tuple(Prompt(index, ids(length)) for index, (length, _) in enumerate(lengths))
    responses = tuple(
        Response(ids(length), "", tuple([-1.0] * length), index % 2 == 0, ((0, 0, length),), index)
        for index, (_, length) in enumerate(lengths)
    )
    return Rollout.of(prompts, responses)


def batch_of(rollout: Rollout, learner: Any, seed: int = 1) -> Batch:
    """Old log-probabilities near the learner's, random advantages and weights, rubbish in the padding."""
    rng = torch.Generator().manual_seed(seed)
    own_BT, _ = learner.analyse(rollout)
    mask_BT = rollout.loss_mask_BT

    def noise(scale: float) -> Tensor:
        return torch.randn(mask_BT.shape, generator=rng, dtype=F64) * scale

    def spoilt(values_BT: Tensor) -> Tensor:
        return values_BT.where(mask_BT, 1e3)

    return Batch(
        rollout, spoilt(own_BT + noise(0.2)), spoilt(noise(1)), spoilt(noise(1)), spoilt(noise(1)),
        spoilt(noise(1).abs()),
    )  # fmt: skip


class StillCritic:
    """A critic that learns nothing; its gradient is of norm `norm`."""

    def __init__(self, norm: float = 0.0) -> None:
        self.norm = norm
        self.rows: list[list[int]] = []
        self.divisors: list[float] = []

    def prepare(self, rollout: Rollout, rewards_BT: Tensor) -> None: ...

    def values(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        return torch.zeros(rollout.loss_mask_BT.shape), torch.zeros(len(rollout.responses))

    def update(self, rollout, rows, old_values_BT, returns_BT, divisor):
        self.rows.append(list(rows))
        self.divisors.append(divisor)
        return {"loss/value_avg": 0.0, "val/clipfrac_avg": 0.0, "grad_norm/value": self.norm}


def gradients(learner: Any) -> dict[str, Tensor]:
    """What the only step so far was made of: Adam's first moment is (1 − β₁)·g."""
    state = learner.state_dict()["policy"]
    moments = [entry["exp_avg"] / 0.1 for _, entry in sorted(state["optimiser"]["state"].items())]
    return dict(zip(state["weights"], moments, strict=True))


def weights(learner: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.changed_tensors(F64)}


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class TestGradient:
    LENGTHS = ((3, 4), (1, 1), (5, 2), (2, 6), (4, 3))

    def expected(self, world: Any, batch: Batch) -> tuple[float, dict[str, Tensor]]:
        """Eq. 7 of Schulman et al. 2017 over HF's own forward, one sequence and token at a time."""
        model, rollout = world.learner._model, batch.rollout
        tokens = int(rollout.loss_mask_BT.sum())
        loss = torch.zeros((), dtype=F64)
        for b, (sequence, start) in enumerate(
            zip(batch.rollout.sequences, batch.rollout.starts, strict=True)
        ):
            logits = model(input_ids=torch.tensor([sequence])).logits[0]
            for t, position in enumerate(range(start, len(sequence))):
                logprob = (logits[position - 1] / 0.7).log_softmax(-1)[sequence[position]]
                ratio = (logprob - batch.old_logprobs_BT[b, t]).exp()
                advantage = batch.advantages_BT[b, t]
                term = torch.max(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2))
                loss = loss + batch.weights_BT[b, t] * term / tokens
        names, parameters = zip(*model.named_parameters(), strict=True)
        return float(loss.detach()), dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))

    @pytest.mark.parametrize("micro", [1, 2, 5])
    def test_is_that_of_the_paper(self, make_world, micro):
        world = make_world(F64, temperature=0.7, num_mini_batches=1, micro_batch_size=micro, **UNCLIPPED)
        batch = batch_of(rollout_of(self.LENGTHS), world.learner)
        loss, expected = self.expected(world, batch)
        measures = world.learner.update(batch, StillCritic())
        assert measures["loss/policy_avg"] == pytest.approx(loss, abs=1e-9)
        for name, gradient in gradients(world.learner).items():
            torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-9)

    @given(
        lengths=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 7)), min_size=1, max_size=6),
        micro=st.integers(1, 6),
        seed=st.integers(0, 99),
    )
    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_is_the_same_for_every_split(self, make_world, lengths, micro, seed):
        found = []
        for size in (len(lengths), micro):
            world = make_world(F64, num_mini_batches=1, micro_batch_size=size, **UNCLIPPED)
            world.learner.update(batch_of(rollout_of(lengths, seed), world.learner), StillCritic())
            found.append(gradients(world.learner))
        for name, gradient in found[0].items():
            torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-6)

    def test_a_dropped_sequence_leaves_the_divisor_right(self, make_world):
        """Dropping a row is the same as never having sampled it."""
        world = make_world(F64, temperature=0.7, num_mini_batches=1, **UNCLIPPED)
        whole = rollout_of(self.LENGTHS)
        kept = [0, 2, 3]
        full = batch_of(whole, world.learner)
        part = Batch(
            whole.select(kept),
            *(x[kept, :6] for x in (full.old_logprobs_BT, full.advantages_BT, full.returns_BT)),
            *(x[kept, :6] for x in (full.old_values_BT, full.weights_BT)),
        )
        critic = StillCritic()
        _, expected = self.expected(world, part)
        world.learner.update(part, critic)
        assert critic.divisors == [4 + 2 + 6]
        for name, gradient in gradients(world.learner).items():
            torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-9)

    def test_is_clipped_over_all_parameters(self, make_world):
        world = make_world(F64, num_mini_batches=1, max_grad_norm=0.01)
        measures = world.learner.update(batch_of(rollout_of(self.LENGTHS), world.learner), StillCritic())
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients(world.learner).values()))
        assert norm == pytest.approx(0.01, rel=1e-3)
        assert measures["grad_norm/policy"] > 0.1


class TestAnalyse:
    def test_agrees_with_the_generator_and_has_the_true_entropy(self, make_world):
        world = make_world(temperature=0.8)
        seeds = list(range(len(world.prompts)))
        responses = world.roles.policy.generate(world.prompts, seeds, 0)
        rollout = Rollout.of(tuple(world.prompts), tuple(responses))
        logprobs_BT, entropy_BT = world.learner.analyse(rollout)
        torch.testing.assert_close(logprobs_BT, rollout.logprobs_BT, rtol=0, atol=1e-5)
        ids = torch.tensor([rollout.sequences[3]])
        logits = world.learner._model(input_ids=ids).logits[0, rollout.starts[3] - 1]
        expected = torch.distributions.Categorical(logits=logits / 0.8).entropy().detach()
        assert float(entropy_BT[3, 0]) == pytest.approx(float(expected), rel=1e-5)
        assert not entropy_BT[~rollout.loss_mask_BT].any()

    def test_whose_logprobs_are_the_old_ones(self, make_world):
        assert make_world(torch.float32).learner.trusts_generator
        assert make_world(F64).learner.trusts_generator
        assert not make_world(torch.bfloat16).learner.trusts_generator
        assert make_world(torch.bfloat16, old_logprobs="generator").learner.trusts_generator
        assert not make_world(torch.float32, old_logprobs="learner").learner.trusts_generator

    def test_the_first_ratio_is_one_if_the_learner_recomputed(self, make_world):
        for dtype in (torch.float32, torch.bfloat16):
            world = make_world(dtype, old_logprobs="learner", learning_rate=1e-4)
            assert world.step()["val/ratio_first"] == pytest.approx(1.0, abs=1e-6)


class TestMinibatches:
    def test_every_epoch_sees_every_row_once_in_a_new_order(self, make_world):
        world = make_world(num_mini_batches=3, num_ppo_epochs=2, learning_rate=1e-6)
        critic = StillCritic()
        rollout = rollout_of([(2, n) for n in range(1, 9)])
        before = torch.get_rng_state()
        measures = world.learner.update(batch_of(rollout, world.learner), critic)
        assert torch.equal(torch.get_rng_state(), before)
        epochs = [list(chain(*critic.rows[i : i + 3])) for i in (0, 3)]
        assert [sorted(rows) for rows in epochs] == [list(range(8))] * 2
        assert epochs[0] != epochs[1]
        assert sorted(len(rows) for rows in critic.rows[:3]) == [2, 3, 3]
        assert critic.divisors[0] == sum(row + 1 for row in critic.rows[0])
        assert measures["updates"] == 6

    def test_more_minibatches_than_rows_left(self, make_world):
        world = make_world(num_mini_batches=4)
        critic = StillCritic()
        world.learner.update(batch_of(rollout_of([(2, 2), (2, 3)]), world.learner), critic)
        assert sorted(chain(*critic.rows)) == [0, 1]


class TestSkips:
    def batch(self, world: Any, bad_rows: Sequence[int] = ()) -> Batch:
        batch = batch_of(rollout_of([(2, 3)] * 4), world.learner)
        batch.advantages_BT[list(bad_rows)] = math.nan
        return batch

    def test_a_bad_policy_gradient_leaves_both_alone(self, make_world):
        world = make_world(num_mini_batches=1)
        critic = StillCritic()
        before = weights(world.learner)
        measures = world.learner.update(self.batch(world, [1]), critic)
        assert measures["skipped_updates"] == 1
        assert measures["updates"] == 0
        assert critic.rows == []
        assert equal(weights(world.learner), before)
        assert all(math.isfinite(value) for value in measures.values())

    def test_a_bad_value_gradient_leaves_the_policy_alone(self, make_world):
        world = make_world(num_mini_batches=1)
        before = weights(world.learner)
        measures = world.learner.update(self.batch(world), StillCritic(norm=math.inf))
        assert measures["skipped_updates"] == 1
        assert equal(weights(world.learner), before)

    def test_the_next_one_starts_from_clean_gradients(self, make_world):
        after_skip, fresh = make_world(F64, num_mini_batches=1), make_world(F64, num_mini_batches=1)
        after_skip.learner.update(self.batch(after_skip, [0]), StillCritic())
        fresh.learner._generator.set_state(after_skip.learner._generator.get_state())
        for world in (after_skip, fresh):
            world.learner.update(self.batch(world), StillCritic())
        assert equal(weights(after_skip.learner), weights(fresh.learner))

    def test_three_in_a_row_stop_the_run_across_iterations(self, make_world):
        world = make_world(num_mini_batches=1)
        for _ in range(2):
            world.learner.update(self.batch(world), StillCritic(norm=math.nan))
        world.learner.update(self.batch(world), StillCritic())
        for _ in range(2):
            world.learner.update(self.batch(world), StillCritic(norm=math.nan))
        with pytest.raises(NotFinite, match="3 minibatches in a row"):
            world.learner.update(self.batch(world), StillCritic(norm=math.nan))

    def test_and_across_a_restart(self, make_world):
        world, resumed = make_world(num_mini_batches=1), make_world(num_mini_batches=1)
        for _ in range(2):
            world.learner.update(self.batch(world), StillCritic(norm=math.nan))
        resumed.learner.load_state_dict(world.learner.state_dict())
        with pytest.raises(NotFinite):
            resumed.learner.update(self.batch(resumed), StillCritic(norm=math.nan))


class TestKLStop:
    def test_ends_the_iteration_before_the_step_that_is_too_far(self, make_world):
        world = make_world(num_mini_batches=1, num_ppo_epochs=4, target_kl=1e-4, learning_rate=3e-3)
        critic = StillCritic()
        rollout = rollout_of([(2, 3)] * 4)
        own_BT, _ = world.learner.analyse(rollout)
        ones_BT = torch.ones_like(own_BT)
        measures = world.learner.update(Batch(rollout, own_BT, ones_BT, ones_BT, ones_BT, ones_BT), critic)
        assert measures["kl_stops"] == 1
        assert measures["updates"] == 1 == len(critic.rows)

    @pytest.mark.parametrize(("share", "stops"), [(1 / 1.45, 0), (1 / 1.55, 1)])
    def test_at_one_and_a_half_times_the_target(self, make_world, share, stops):
        rollout = rollout_of([(2, 3)] * 4)
        free = make_world(F64, num_mini_batches=1)
        distance = free.learner.update(batch_of(rollout, free.learner), StillCritic())["policy/approxkl_avg"]
        world = make_world(F64, num_mini_batches=1, target_kl=share * distance)
        measures = world.learner.update(batch_of(rollout, world.learner), StillCritic())
        assert measures["kl_stops"] == stops

    def test_what_it_had_accumulated_is_gone(self, make_world):
        world = make_world(num_mini_batches=1, target_kl=1e-9)
        batch = batch_of(rollout_of([(2, 3)] * 4), world.learner)
        before = weights(world.learner)
        assert world.learner.update(batch, StillCritic())["updates"] == 0
        assert equal(weights(world.learner), before)
        assert all(p.grad is None for p in world.learner._model.parameters())

    def test_off_by_default(self, make_world):
        world = make_world(num_mini_batches=1, num_ppo_epochs=4, learning_rate=3e-3)
        measures = world.learner.update(batch_of(rollout_of([(2, 3)] * 4), world.learner), StillCritic())
        assert (measures["kl_stops"], measures["updates"]) == (0, 4)


class TestWarmup:
    def test_learning_rate_by_iteration(self, make_world):
        learner = make_world(warmup_iterations=10, learning_rate=2.0).learner
        rates = []
        for _ in range(12):
            rates.append(learner.learning_rate)
            learner.advance(8)
        assert rates == pytest.approx([0.2, 0.38, 0.56, 0.74, 0.92, 1.1, 1.28, 1.46, 1.64, 1.82, 2, 2])
        assert learner.episodes == 96

    def test_only_the_critic_moves_at_first(self, make_world):
        world = make_world(critic_warmup=2, warmup_iterations=4, learning_rate=1e-2)
        start, value_start = weights(world.learner), copy.deepcopy(world.critic.state_dict())
        rates = [world.step()["lr"] for _ in range(2)]
        assert equal(weights(world.learner), start)
        assert not equal(world.critic.state_dict()["model"]["weights"], value_start["model"]["weights"])
        assert "loss/policy_avg" not in world.history[0]
        rates.append(world.step()["lr"])
        assert not equal(weights(world.learner), start)
        assert rates == pytest.approx([1e-3] * 3)


class TestPretrainingMix:
    DOCUMENTS = (tuple(range(10, 40)), tuple(range(50, 57)), (99, 100, 101))

    def test_adds_gamma_times_the_mean_loss_per_token(self, make_world):
        settings = {"num_mini_batches": 1, "ptx_ratio": 2, "ptx_length": 12, "micro_batch_size": 3}
        plain, mixed = (
            make_world(F64, documents=self.DOCUMENTS, ptx_coef=coef, **settings, **UNCLIPPED)
            for coef in (0.0, 27.8)
        )
        rollout = rollout_of([(2, 3), (3, 1), (1, 4)])
        expected_pieces = copy.deepcopy(mixed.learner._pretraining).take(6)
        model = mixed.learner._model
        terms = []
        for piece in expected_pieces:
            logprobs = model(input_ids=torch.tensor([piece])).logits[0].log_softmax(-1)
            terms += [-logprobs[i, piece[i + 1]] for i in range(len(piece) - 1)]
        loss = torch.stack(terms).mean()
        names, parameters = zip(*model.named_parameters(), strict=True)
        ptx = dict(zip(names, torch.autograd.grad(27.8 * loss, parameters), strict=True))
        measures = [
            world.learner.update(batch_of(rollout, world.learner), StillCritic()) for world in (plain, mixed)
        ]
        assert measures[1]["loss/ptx"] == pytest.approx(float(loss.detach()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in ptx.values()))
        assert measures[1]["grad_norm/ptx"] == pytest.approx(norm)
        assert measures[1]["grad_norm/policy"] == pytest.approx(measures[0]["grad_norm/policy"])
        assert "loss/ptx" not in measures[0]
        for name, gradient in gradients(mixed.learner).items():
            torch.testing.assert_close(
                gradient, gradients(plain.learner)[name] + ptx[name], rtol=0, atol=1e-6
            )

    def test_needs_text(self, make_world):
        with pytest.raises(ValueError, match="pretraining mix"):
            make_world(ptx_coef=1.0)


class TestWeights:
    def test_tied_ones_once_and_in_the_wire_type(self, make_world):
        learner = make_world().learner
        names = [name for name, _ in learner.changed_tensors(torch.bfloat16)]
        assert "lm_head.weight" not in names
        assert len(names) == len(set(names)) == len(dict(learner._model.named_parameters()))
        assert {tensor.dtype for _, tensor in learner.changed_tensors(torch.bfloat16)} == {torch.bfloat16}

    def test_only_what_trains(self, make_world):
        world = make_world(trainable="top:1", learning_rate=1e-2)
        before = {name: p.clone() for name, p in world.learner._model.named_parameters()}
        world.step()
        named = dict(world.learner.changed_tensors(torch.float32))
        assert named.keys() == {n for n in before if n.startswith("model.layers.1.")} | {"model.norm.weight"}
        for name, parameter in world.learner._model.named_parameters():
            assert torch.equal(parameter, before[name]) != (name in named), name

    def test_masters_are_float32_beside_frozen_bfloat16(self, make_world):
        world = make_world(torch.bfloat16, trainable="top:1", learning_rate=1e-3)
        model = world.learner._model
        assert model.model.layers[1].mlp.up_proj.weight.dtype == torch.float32
        assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
        before = weights(world.learner)
        metrics = world.step()
        assert metrics["updates"] == 2
        assert not equal(weights(world.learner), before)
        assert metrics["mismatch/logprob_abs_mean"] < 0.1

    def test_moving_average_follows_and_is_not_what_is_pushed(self, make_world):
        world = make_world(F64, ema_decay=0.9, num_mini_batches=1, learning_rate=1e-2)
        expected = weights(world.learner)
        for _ in range(2):
            world.step()
            now = weights(world.learner)
            expected = {name: 0.9 * expected[name] + 0.1 * now[name] for name in expected}
        averaged = dict(world.learner.changed_tensors(F64, averaged=True))
        for name, tensor in averaged.items():
            torch.testing.assert_close(tensor, expected[name])
        assert not equal(averaged, now)

    def test_there_is_no_average_unless_asked_for(self, make_world):
        with pytest.raises(ValueError, match="ema_decay"):
            next(make_world().learner.changed_tensors(F64, averaged=True))


class TestState:
    def test_a_part_that_is_absent_is_refused(self, make_world):
        learner = make_world(ema_decay=0.9).learner
        for part in ("policy", "average", "generator", "step"):
            with pytest.raises(CheckpointError, match=part):
                learner.load_state_dict({k: v for k, v in learner.state_dict().items() if k != part})
        with pytest.raises(CheckpointError, match="average"):
            learner.load_state_dict(make_world().learner.state_dict())

    def test_other_trained_parameters_are_refused(self, make_world):
        state = make_world(trainable="top:1").learner.state_dict()
        with pytest.raises(CheckpointError, match="other parameters"):
            make_world().learner.load_state_dict(state)
