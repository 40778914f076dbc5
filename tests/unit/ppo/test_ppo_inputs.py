"""What goes into a run: its settings, the pretraining text, and rollouts as rectangles."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st
from pydantic import ValidationError

from trainer.errors import CheckpointError, DataError
from trainer.ppo import config
from trainer.ppo.config import CriticSection, PPOSection, SamplingSection
from trainer.ppo.ptx import PretrainingMix
from trainer.ppo.rollout import Prompt, Response, Rollout


class TestConfig:
    def test_defaults_are_the_papers(self):
        ppo, critic, sampling = PPOSection(), CriticSection(path="reward"), SamplingSection()
        assert (ppo.total_episodes, ppo.batch_size, ppo.num_mini_batches, ppo.num_ppo_epochs) == (
            256_000,
            512,
            8,
            1,
        )
        assert (ppo.adam_beta1, ppo.adam_beta2, ppo.adam_epsilon, ppo.max_grad_norm) == (0.9, 0.95, 1e-5, 1.0)
        assert (ppo.kl_coef, ppo.adap_kl_ctrl, ppo.target, ppo.horizon) == (0.02, False, 6.0, 10_000)
        assert (ppo.gamma, ppo.lam, ppo.cliprange, ppo.target_kl) == (1.0, 0.95, 0.2, None)
        assert (ppo.whiten_rewards, ppo.whiten_advantages, ppo.bootstrap_truncated) == (False, True, False)
        assert (ppo.missing_eos, ppo.missing_eos_penalty, ppo.on_reward_error) == ("replace", 1.0, "fail")
        assert (ppo.warmup_iterations, ppo.warmup_start, ppo.critic_warmup) == (10, 0.1, 0)
        assert (ppo.ptx_coef, ppo.ptx_ratio, ppo.ema_decay, ppo.tis_cap) == (0.0, 8, None, None)
        assert (ppo.old_logprobs, ppo.learning_rate <= 8.05e-6) == ("auto", True)
        assert (critic.learning_rate, critic.cliprange_value, critic.vf_coef) == (9e-6, 0.2, 0.1)
        assert (sampling.temperature, sampling.response_length, sampling.max_prompt_length) == (
            1.0,
            1024,
            1024,
        )

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"kl_coeff": 0.1}, "kl_coeff"),
            ({"kl_coef": -0.1}, "kl_coef"),
            ({"gamma": 1.5}, "gamma"),
            ({"missing_eos": "force"}, "missing_eos"),
            ({"batch_size": 4, "num_mini_batches": 5}, "num_mini_batches must be at most batch_size: 5 > 4"),
            ({"num_ppo_epochs": 0}, "num_ppo_epochs"),
            ({"ema_decay": 1.0}, "ema_decay"),
        ],
    )
    def test_wrong_values_are_named(self, settings, named):
        with pytest.raises(ValidationError, match=named):
            PPOSection(**settings)

    @pytest.mark.parametrize("key", ["top_p", "top_k"])
    def test_nothing_bends_the_distribution(self, key):
        with pytest.raises(ValidationError, match=key):
            SamplingSection(**{key: 1})

    def test_every_key_says_what_it_is_and_where_it_comes_from(self):
        sources = ("IG", "N ", "N+", "LHP", "Ziegler", "Ours", "verl", "Spinning Up")
        text = Path(config.__file__).read_text(encoding="utf-8")
        for key in PPOSection.__annotations__:
            comment = text.split(f"    {key}: ", 1)[1].split('"""', 2)[1]
            assert any(source in comment for source in sources), key


class TestPretrainingMix:
    @given(
        st.lists(st.lists(st.integers(0, 9), max_size=12), min_size=1, max_size=6),
        st.integers(2, 5),
        st.integers(0, 9),
    )
    def test_a_pass_holds_every_piece_once(self, documents, length, seed):
        expected = sorted(
            tuple(d[i : i + length]) for d in documents for i in range(0, len(d), length) if len(d) - i >= 2
        )
        if not expected:
            with pytest.raises(DataError, match="two tokens"):
                PretrainingMix(documents, length, seed)
            return
        mix = PretrainingMix(documents, length, seed)
        assert len(mix) == len(expected)
        for _ in range(2):
            assert sorted(mix.take(len(expected))) == expected

    def test_goes_on_where_it_stood(self):
        documents = [range(start, start + 9) for start in range(0, 90, 9)]
        one, other = PretrainingMix(documents, 4, seed=1), PretrainingMix(documents, 4, seed=2)
        one.take(13)
        other.load_state_dict(one.state_dict())
        assert one.take(50) == other.take(50)
        assert PretrainingMix(documents, 4, seed=1).take(20) != PretrainingMix(documents, 4, seed=2).take(20)

    def test_other_text_is_refused(self):
        state = PretrainingMix([range(9)], 3, seed=0).state_dict()
        with pytest.raises(CheckpointError, match="3 pieces of pretraining text, not 4"):
            PretrainingMix([range(9)], 2, seed=0).load_state_dict(state)

    def test_leaves_global_random_numbers_alone(self):
        before = torch.get_rng_state()
        PretrainingMix([range(9)], 3, seed=0).take(100)
        assert torch.equal(torch.get_rng_state(), before)


class TestRollout:
    PROMPTS = tuple(Prompt(i, tuple(range(i + 1))) for i in range(3))
    RESPONSES = (
        Response((7, 0), "a", (-0.1, -0.2), True, ((3, 0, 2),), 0),
        Response((8,), "b", (-0.3,), False, ((2, 0, 1),), 1),
        Response((9, 9, 9), "c", (-0.4, -0.5, -0.6), True, ((3, 0, 1), (4, 1, 3)), 2),
    )

    def test_masks_come_from_lengths_not_ids(self):
        rollout = Rollout.of(self.PROMPTS, self.RESPONSES)
        assert rollout.loss_mask_BT.tolist() == [[True, True, False], [True, False, False], [True] * 3]
        assert rollout.response_ids_BT.tolist() == [[7, 0, 0], [8, 0, 0], [9, 9, 9]]
        assert rollout.logprobs_BT[0].tolist() == pytest.approx([-0.1, -0.2, 0.0])
        assert rollout.sequences == [(0, 7, 0), (0, 1, 8), (0, 1, 2, 9, 9, 9)]
        assert rollout.starts == [1, 2, 3]
        assert rollout.ended_B.tolist() == [True, False, True]
        assert rollout.policy_steps == (2, 4)

    def test_a_selection_is_as_wide_as_it_needs(self):
        part = Rollout.of(self.PROMPTS, self.RESPONSES).select([1, 0])
        assert part.loss_mask_BT.tolist() == [[True, False], [True, True]]
        assert part.prompts == (self.PROMPTS[1], self.PROMPTS[0])
