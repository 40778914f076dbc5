"""The step as a whole, in one process: what is asked when, what is left out, and that it learns."""

import math
import threading
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.errors import TrainerError
from trainer.metrics import TABLES
from trainer.ppo.collect import Experience, RewardMissing, collect, join, keep_scored, prompt_seeds
from trainer.ppo.measure import mismatch_measures, response_measures, reward_measures
from trainer.ppo.roles import Roles, RoleUnavailable, Scores
from trainer.ppo.rollout import Prompt, Response, Rollout

OF_THE_RECIPE = {
    "objective/kl",
    "objective/entropy",
    "policy/entropy_avg",
    "objective/scores",
    "objective/non_score_reward",
    "objective/rlhf_reward",
    "objective/kl_coef",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "val/clipfrac_avg",
    "val/ratio",
    "val/ratio_var",
    "loss/policy_avg",
    "loss/value_avg",
    "loss/ptx",
    "val/explained_variance",
    "val/num_eos_tokens",
    "val/eos_rate",
    "response_length/mean",
    "response_length/max",
    "response_length/clip_ratio",
    "mismatch/logprob_abs_mean",
    "mismatch/logprob_abs_max",
    "mismatch/kl",
    "policy_lag",
    "grad_norm/policy",
    "grad_norm/value",
    "grad_norm/ptx",
    "lr",
    "episode",
    "eps",
}
THREE = {0: 1.0, 1: 2.0, 3: 4.0}
PROMPTS = [Prompt(index, (5, 6), f"prompt {index}") for index in range(5)]


@dataclass
class ScriptedPolicy:
    """Answers prompt n with n + 1 tokens of n; notes what it was asked."""

    asked: list[list[int]] = field(default_factory=list)
    after: Any = None

    def generate(self, prompts, seeds, step):
        self.asked.append([prompt.index for prompt in prompts])
        if self.after:
            self.after(len(self.asked))
        return [self._answer(p.index, seed, step) for p, seed in zip(prompts, seeds, strict=True)]

    def _answer(self, index, seed, step):
        count = index + 1
        return Response((index,) * count, "", (-0.5,) * count, index % 2 == 0, ((step, 0, count),), seed)

    def push(self, tensors, step): ...


@dataclass
class Scripted:
    """Reward or reference by a function."""

    answer: Any

    def score(self, rollout: Rollout) -> Scores:
        return self.answer(rollout)

    def logprobs(self, rollout: Rollout) -> Tensor:
        return self.answer(rollout)


def by_index(rollout: Rollout) -> Scores:
    return Scores({row: float(prompt.index) for row, prompt in enumerate(rollout.prompts)}, {})


def zeros(rollout: Rollout) -> Tensor:
    return -rollout.loss_mask_BT.float()


def fail(error: Exception):
    def raise_it(rollout: Rollout):
        raise error

    return raise_it


class TestCollect:
    def run(self, reward=by_index, reference=zeros, size=None, policy=None) -> Experience:
        roles = Roles(policy or ScriptedPolicy(), Scripted(reward), Scripted(reference))
        return join(collect(PROMPTS, list(range(5)), 3, roles, size))

    def test_reward_and_reference_are_asked_at_the_same_time(self):
        both_there = threading.Barrier(2, timeout=5)

        def meet(answer):
            return lambda rollout: (both_there.wait(), answer(rollout))[1]

        assert self.run(meet(by_index), meet(zeros)).scores.values[4] == 4.0

    def test_a_chunk_is_scored_while_the_next_is_generated(self):
        scored = threading.Event()

        def score(rollout):
            scored.set()
            return by_index(rollout)

        def wait_for_the_first(calls):
            assert calls == 1 or scored.wait(5)

        self.run(score, size=2, policy=ScriptedPolicy(after=wait_for_the_first))

    @pytest.mark.parametrize("size", [None, 1, 2, 5, 9])
    def test_chunks_join_to_the_batch(self, size):
        policy = ScriptedPolicy()
        experience = self.run(size=size, policy=policy)
        assert [index for call in policy.asked for index in call] == list(range(5))
        assert max(map(len, policy.asked)) == min(size or 5, 5)
        whole = self.run()
        assert experience.scores == whole.scores
        assert experience.rollout.responses == whole.rollout.responses
        assert torch.equal(experience.ref_logprobs_BT, whole.ref_logprobs_BT)
        assert torch.equal(experience.rollout.logprobs_BT, whole.rollout.logprobs_BT)
        assert experience.seconds.keys() == {"time/generate", "time/score", "time/reference"}

    def test_chunks_come_one_by_one(self):
        policy = ScriptedPolicy()
        chunks = collect(
            PROMPTS, list(range(5)), 0, Roles(policy, Scripted(by_index), Scripted(zeros)), size=2
        )
        assert len(next(chunks).rollout.responses) == 2
        chunks.close()
        assert len(policy.asked) < 3 or policy.asked[-1] == [4]

    @pytest.mark.parametrize("role", ["reward", "reference"])
    def test_what_a_role_raises_comes_out_after_the_other_has_ended(self, role):
        other_ended = threading.Event()

        def slow(answer):
            def reply(rollout):
                other_ended.set()
                return answer(rollout)

            return reply

        broken = fail(RoleUnavailable(f"{role} at host:1 is away"))
        roles = {"reward": slow(by_index), "reference": slow(zeros)} | {role: broken}
        with pytest.raises(RoleUnavailable, match=f"{role} at host:1 is away"):
            self.run(**roles)
        assert other_ended.is_set()

    def test_two_errors_are_both_told(self):
        with pytest.raises(RoleUnavailable, match="reward away") as caught:
            self.run(fail(RoleUnavailable("reward away")), fail(RoleUnavailable("reference away")))
        assert caught.value.__notes__ == ["and at the same time RoleUnavailable: reference away"]

    def test_a_policy_that_fails_later_leaves_no_thread(self):
        def break_down(calls):
            if calls == 2:
                raise RoleUnavailable("policy away")

        with pytest.raises(RoleUnavailable, match="policy away"):
            self.run(size=2, policy=ScriptedPolicy(after=break_down))
        assert not [t for t in threading.enumerate() if t.name.startswith("collect")]


class TestSeeds:
    def test_are_uint64_and_differ_by_run_step_and_row(self):
        seeds = [s for run in (0, 1) for step in (0, 1) for s in prompt_seeds(run, step, 50)]
        assert len(set(seeds)) == 200
        assert all(0 <= seed < 2**64 for seed in seeds)
        assert max(seeds) > 2**63

    def test_are_the_same_for_ever(self):
        assert prompt_seeds(7, 3, 2) == prompt_seeds(7, 3, 5)[:2]
        assert prompt_seeds(0, 0, 1) == [11684132067157788011]


class TestMissingRewards:
    def experience(self, values: dict[int, float], failures: dict[int, str]) -> Experience:
        rollout = Rollout.of(tuple(PROMPTS), tuple(ScriptedPolicy().generate(PROMPTS, range(5), 0)))
        return Experience(rollout, Scores(values, failures), zeros(rollout), {})

    def test_fail_names_the_first(self):
        experience = self.experience(THREE, {2: "reward at host:1: too long", 4: "x"})
        with pytest.raises(RewardMissing, match=r"2 of 5 .* sequence 2: reward at host:1: too long .*drop"):
            keep_scored(experience, "fail")

    def test_drop_leaves_out_whole_sequences_and_counts_them(self):
        scored = keep_scored(self.experience(THREE, {2: "x", 4: "y"}), "drop")
        assert scored.dropped == 2
        assert scored.scores_B.tolist() == [1.0, 2.0, 4.0]
        assert [prompt.index for prompt in scored.rollout.prompts] == [0, 1, 3]
        assert scored.rollout.loss_mask_BT.sum(dim=1).tolist() == [1, 2, 4]
        assert scored.ref_logprobs_BT.shape == scored.rollout.loss_mask_BT.shape == (3, 4)

    @pytest.mark.parametrize("number", [math.nan, math.inf])
    def test_what_is_not_finite_is_missing(self, number):
        every = dict.fromkeys(range(5), 1.0)
        with pytest.raises(RewardMissing, match=f"sequence 1: the reward was {number}"):
            keep_scored(self.experience(every | {1: number}, {}), "fail")
        assert keep_scored(self.experience(every | {1: number}, {}), "drop").dropped == 1

    def test_what_the_answer_lacks_is_missing(self):
        with pytest.raises(RewardMissing, match="not in the answer"):
            keep_scored(self.experience({0: 1.0}, {}), "fail")

    def test_nothing_left_to_learn_from(self):
        with pytest.raises(RewardMissing, match=r"5 of 5 .*none is left") as caught:
            keep_scored(self.experience({}, dict.fromkeys(range(5), "away")), "drop")
        assert isinstance(caught.value, TrainerError)

    def test_all_there(self):
        scored = keep_scored(self.experience(dict.fromkeys(range(5), 0.5), {}), "fail")
        assert (scored.dropped, len(scored.rollout.responses)) == (0, 5)


class TestMeasures:
    ROLLOUT = Rollout.of(tuple(PROMPTS[:2]), tuple(ScriptedPolicy().generate(PROMPTS[:2], range(2), 0)))

    def test_of_rewards(self):
        kl_BT = torch.tensor([[0.5, 0.0], [1.0, 0.5]])
        old_BT = torch.tensor([[-1.0, 0.0], [-2.0, -3.0]])
        assert reward_measures(torch.tensor([1.0, 2.0]), kl_BT, old_BT, 0.1) == pytest.approx({
            "objective/kl": 1.0,
            "objective/entropy": 3.0,
            "objective/scores": 1.5,
            "objective/scores_std": 0.5,
            "objective/non_score_reward": -0.1,
            "objective/rlhf_reward": 1.4,
            "objective/kl_coef": 0.1,
        })  # fmt: skip

    def test_of_responses(self):
        assert response_measures(self.ROLLOUT) == {
            "val/num_eos_tokens": 1.0,
            "val/eos_rate": 0.5,
            "response_length/mean": 1.5,
            "response_length/max": 2.0,
            "response_length/clip_ratio": 0.5,
        }

    def test_of_the_mismatch(self):
        ours_BT = torch.tensor([[-0.5, 77.0], [-0.7, -0.4]])
        expected = [math.exp(d) - 1 - d for d in (0.0, -0.2, 0.1)]
        assert mismatch_measures(ours_BT, self.ROLLOUT) == pytest.approx({
            "mismatch/logprob_abs_mean": 0.1,
            "mismatch/logprob_abs_max": 0.2,
            "mismatch/kl": sum(expected) / 3,
        }, abs=1e-7)  # fmt: skip


class TestStep:
    def test_metrics_are_those_of_the_table(self, make_world):
        world = make_world(documents=[range(5, 60)], ptx_coef=0.1, ema_decay=0.9, target_kl=1e3)
        metrics = world.step()
        assert OF_THE_RECIPE <= metrics.keys() <= {metric.name for metric in TABLES["ppo"]}
        assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())

    def test_before_the_first_update_nothing_has_moved(self, make_world):
        first = make_world().step()
        assert first["objective/kl"] == pytest.approx(0.0, abs=1e-5)
        assert first["val/ratio_first"] == pytest.approx(1.0, abs=1e-5)
        assert first["mismatch/logprob_abs_max"] < 1e-5
        assert (first["policy_lag"], first["episode"], first["dropped_rewards"]) == (0, 8, 0)
        assert first["objective/rlhf_reward"] == pytest.approx(first["objective/scores"], abs=1e-6)

    def test_each_step_generates_by_the_weights_of_the_one_before(self, make_world):
        world = make_world(learning_rate=3e-3)
        metrics = [world.step() for _ in range(3)]
        assert [m["episode"] for m in metrics] == [8, 16, 24]
        assert all(m["policy_lag"] == 0 and m["mismatch/logprob_abs_max"] < 1e-5 for m in metrics)
        assert metrics[2]["objective/kl"] > 1e-3

    def test_beta_of_the_step_is_that_before_its_update(self, make_world):
        world = make_world(adap_kl_ctrl=True, target=6.0, horizon=100.0, kl_coef=0.1)
        assert world.step()["objective/kl_coef"] == 0.1
        assert world.kl.value == pytest.approx(0.1 * (1 - 0.2 * 8 / 100))
        assert world.step()["objective/kl_coef"] == world.history[0]["objective/kl_coef"] * (1 - 0.016)

    def test_dropped_sequences_are_counted_and_episodes_stay_episodes(self, make_world):
        world = make_world(on_reward_error="drop")
        whole = world.roles.reward.score
        partly = Scripted(lambda rollout: Scores(
            {row: value for row, value in whole(rollout).values.items() if row % 4}, {0: "away", 4: "away"}
        ))  # fmt: skip
        world.roles = replace(world.roles, reward=partly)
        metrics = world.step()
        assert (metrics["dropped_rewards"], metrics["episode"], metrics["updates"]) == (2, 8, 2)

    @pytest.mark.parametrize("size", [1, 3])
    def test_chunks_make_the_same_step(self, make_world, size):
        whole, chunked = make_world(torch.float64), make_world(torch.float64)
        expected, actual = whole.step(), chunked.step(collect_size=size)
        timed = {name for name in expected if name.startswith("time/")} | {"eps", "tokens_per_second"}
        for name in expected.keys() - timed:
            assert actual[name] == pytest.approx(expected[name], abs=1e-6), name

    @pytest.mark.parametrize("ended", [False, True])
    def test_truncated_responses_may_be_bootstrapped_and_others_not(self, make_world, ended):
        losses = []
        for bootstrap in (False, True):
            world = make_world(bootstrap_truncated=bootstrap, missing_eos="none")
            honest = world.roles.policy.generate

            def generate(prompts, seeds, step, honest=honest):
                return [replace(response, ended=ended) for response in honest(prompts, seeds, step)]

            world.roles.policy.generate = generate
            losses.append(world.step()["loss/value_avg"])
        assert (losses[0] == losses[1]) == ended

    @pytest.mark.parametrize(
        "settings",
        [
            {"whiten_rewards": True},
            {"whiten_advantages": False},
            {"missing_eos": "subtract"},
            {"missing_eos_penalty": 2.0},
            {"gamma": 0.9},
            {"lam": 0.5},
        ],
    )
    def test_switches_change_what_is_learned(self, make_world, settings):
        changed, plain = make_world(**settings).step(), make_world().step()
        norms = ("grad_norm/value", "grad_norm/policy")
        assert [changed[name] for name in norms] != [plain[name] for name in norms]

    def test_importance_weights_correct_a_generator_that_is_off(self, make_world):
        """A sampler that says exp(−1) too little of each token: every weight meets its cap."""
        grads = []
        for cap in (None, 2.0):
            world = make_world(torch.float64, old_logprobs="learner", tis_cap=cap, num_mini_batches=1)
            honest = world.roles.policy.generate

            def off(prompts, seeds, step, honest=honest):
                answers = honest(prompts, seeds, step)
                return [replace(r, logprobs=tuple(x - 1 for x in r.logprobs)) for r in answers]

            world.roles.policy.generate = off
            metrics = world.step()
            assert metrics["mismatch/logprob_abs_mean"] == pytest.approx(1.0, abs=1e-6)
            grads.append(metrics["grad_norm/policy"])
        assert grads[1] == pytest.approx(2 * grads[0], rel=1e-9)

    @pytest.mark.slow
    def test_learns(self, make_world):
        """Thirty steps raise a countable reward from nothing to nearly all there is."""
        world = make_world(
            length=8,
            batch_size=32,
            num_mini_batches=4,
            num_ppo_epochs=2,
            learning_rate=3e-3,
            missing_eos="none",
            critic={"learning_rate": 3e-3, "refit_head": True},
        )
        for _ in range(30):
            world.step()
        scores = [metrics["objective/scores"] for metrics in world.history]
        assert max(scores[:3]) < -0.4
        assert min(scores[-3:]) > 0.2
        assert world.history[-1]["val/explained_variance"] > 0.5
        assert sum(metrics["skipped_updates"] for metrics in world.history) == 0
