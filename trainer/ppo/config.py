"""Configuration of the PPO stage: TRL's spelling where TRL has a key, defaults and sources from the recipe.

Sources: IG Ouyang et al. 2022 (InstructGPT); N Huang et al. 2023; N+ Huang et al. 2024; LHP
openai/lm-human-preferences; Ziegler et al. 2019. "Ours" marks what none of them states.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainer.config import AdamSection, ModelSection, Section, StageConfig
from trainer.ppo.run_sections import DataSection, EvaluationSection, ServicesSection

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class SamplingSection(Section):
    """[sampling]: how responses are made.

    There is no top-p or top-k: they make the sampled distribution another than the learner's.
    """

    temperature: Positive = 1.0
    """Of the sampling and of every log-probability. IG C.4; N+ and TRL use 0.7."""
    response_length: Count = 1024
    """Most tokens of a response. IG appendix C."""
    max_prompt_length: Count = 1024
    """Longer prompts are dropped, never cut. IG appendix C."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a response beside the model's EOS."""
    request_size: Count = 16
    """Prompts in one deterministic Generate request: what any replica redoes bit for bit. Ours."""
    collect_size: Count | None = None
    """Prompts generated at a time, scored while the next ones are generated; unset, the whole batch at
    once, which is best where the services share the processors. Ours."""


class PPOSection(AdamSection):
    """[ppo]: rollout, reward, advantages and update."""

    total_episodes: Count = 256_000
    """Responses sampled in the run. IG C.4."""
    batch_size: Count = 512
    """Episodes an iteration. IG C.4. Small scale: 32 to 64."""
    num_mini_batches: Count = 8
    """Optimiser steps in a pass over the batch. IG C.4: 8 of 64; 16 of 32 were slightly better (E.11)."""
    num_ppo_epochs: Count = 1
    """Passes over a batch. IG C.4. Small scale: 1 to 4."""
    learning_rate: Positive = 5e-6
    """Ours, inside what IG swept (2.55e-6 to 2.55e-5) and below 8.05e-6, above which all runs without
    pretraining mix diverged (E.9). Small scale: 1e-5 to 1e-4."""
    warmup_iterations: Annotated[int, Field(ge=0)] = 10
    """Linear, then constant. IG C.4. Short runs: 1 or 2."""
    warmup_start: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the peak rate to start from. IG C.4."""

    kl_coef: NonNegative = 0.02
    """β, the weight of the per-token KL in the reward. IG C.4; 0.01 to 0.02 were best (E.7)."""
    adap_kl_ctrl: bool = False
    """Whether β adapts (Ziegler et al. 2019, section 2.2). IG: fixed."""
    target: Positive = 6.0
    """KL per sequence, in nats, that an adaptive β aims at. Ziegler et al. 2019."""
    horizon: Positive = 10_000.0
    """Of an adaptive β, in episodes. LHP. A run of 1,000 episodes needs 300 to 500."""
    target_kl: Positive | None = None
    """An iteration ends when a minibatch's approximate KL to the rollout policy exceeds 1.5 times this.
    Off. Spinning Up (the factor from memory)."""

    missing_eos: Literal["replace", "subtract", "none"] = "replace"
    """Score of a response that never ended: −missing_eos_penalty (LHP, N+ 23) or its own minus that (TRL)."""
    missing_eos_penalty: NonNegative = 1.0
    """N+ 23. Presumes a normalised reward model."""
    whiten_rewards: bool = False
    """Unit variance, mean kept. LHP on, N+ 24 optional, IG silent."""
    on_reward_error: Literal["fail", "drop"] = "fail"
    """Whether a reward that could not be had ends the run, or its sequence is left out and counted. Ours."""

    gamma: Share = 1.0
    """Discount. IG: none."""
    lam: Share = 0.95
    """λ of GAE. LHP; IG gives none."""
    bootstrap_truncated: bool = False
    """Whether a response cut at the limit ends in the critic's value instead of 0. IG 3.5: a bandit."""
    whiten_advantages: bool = True
    """Mean 0, std 1, over the whole batch. N P9 (there per minibatch)."""

    cliprange: Positive = 0.2
    """Of the probability ratio. IG C.4."""
    old_logprobs: Literal["auto", "generator", "learner"] = "auto"
    """Whose log-probabilities are the old ones of ratio and KL; auto: the generator's if it and the
    learner compute in float32, else the learner's. Ours."""
    tis_cap: Positive | None = None
    """C of truncated importance sampling where the learner recomputes. Off; verl and OpenRLHF use 2."""
    critic_warmup: Annotated[int, Field(ge=0)] = 0
    """Iterations in which only the critic learns. Off; NeMo-Aligner, verl."""

    ptx_coef: NonNegative = 0.0
    """γ of eq. 2, the weight of the pretraining loss; 0 is plain PPO. IG's PPO-ptx: 27.8 (C.4, E.6)."""
    ptx_ratio: Count = 8
    """Pretraining sequences per PPO sequence. IG C.4; at 4 their loss often rose (E.11)."""
    ptx_length: Annotated[int, Field(ge=2)] = 1024
    """Tokens of a pretraining sequence. Ours: as long as the responses."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Of the policy's moving average, per optimiser step. IG C.4: 0.992. Off: at 64 steps that is still
    60 % SFT."""

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.num_mini_batches > self.batch_size:
            raise ValueError(
                f"num_mini_batches must be at most batch_size: {self.num_mini_batches} > {self.batch_size}"
            )
        return self


class CriticSection(ModelSection, AdamSection):
    """[critic]: the value model, separate and started from the reward model `path` (IG C.4)."""

    learning_rate: Positive = 9e-6
    """Fixed. IG C.4 (5e-6 beside the 175B policy)."""
    cliprange_value: Positive = 0.2
    """How far a value may move in an iteration. LHP, N P10. Large returns freeze it: watch its clip share."""
    vf_coef: Positive = 0.1
    """Weight of the value loss. LHP. With an optimiser of its own only the clip of the norm feels it."""
    refit_head: bool = False
    """Ridge refit of the head on the first rollout's returns, since a reward model's head knows only the
    last token. Ours."""


class PPOConfig(StageConfig):
    """`python -m trainer ppo`: PPO against live services."""

    model: ModelSection
    critic: CriticSection
    services: ServicesSection
    data: DataSection
    sampling: SamplingSection = SamplingSection()
    ppo: PPOSection = PPOSection()
    evaluation: EvaluationSection = EvaluationSection()

    @property
    def total_steps(self) -> int:
        """Iterations: what total_episodes makes in whole batches, at least one."""
        return max(1, self.ppo.total_episodes // self.ppo.batch_size)

    @model_validator(mode="after")
    def _pretraining_text(self) -> Self:
        if self.ppo.ptx_coef and self.data.pretraining is None:
            raise ValueError("data.pretraining is needed, since ppo.ptx_coef is above 0")
        return self
