"""Configuration of the reward model. Sources as in trainer.config."""

from typing import Annotated

from pydantic import Field

from trainer.config import AdamSection, ModelSection, Section, StageConfig
from trainer.paths import PlacePath


class DataSection(Section):
    """[data]: rankings or pairs, split by prompt."""

    volatile = frozenset(
        {"train", "validation", "heldout_labelers", "demonstrations"}
    )  # what is in them has a digest

    train: PlacePath
    validation: PlacePath | None = None
    """Rankings of held-out prompts."""
    heldout_labelers: PlacePath | None = None
    """Rankings of labelers who gave none of `train` (IG section 4.1)."""
    demonstrations: PlacePath | None = None
    """Those that shall score 0 on average (IG section 3.5). Unset: scores are served as they come."""


class BackboneSection(ModelSection):
    """[model]: the SFT policy that the reward model starts from."""

    layers: Annotated[int, Field(ge=1)] | None = None
    """Keeps the first N layers only. Ours: 18 of SmolLM2's 30 rank better than all, in half the time."""


class RewardModelSection(AdamSection):
    """[reward_model]: the recipe. Small scale: 1e-5 to 1e-4, smaller batches."""

    num_train_epochs: Annotated[int, Field(ge=1)] = 1
    """IG C.2: more overfit quickly."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Prompts an optimiser step, each with all its completions. IG C.2."""
    learning_rate: Annotated[float, Field(gt=0)] = 9e-6
    """Peak. IG C.2; ±50 % hardly matters."""
    head_learning_rate_factor: Annotated[float, Field(gt=0)] = 1.0
    """The scalar head learns this many times faster. Ours; small scale: 5 to 10."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """IG: none."""
    min_lr_rate: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Where the cosine ends, as a share of the peak. IG C.2."""
    micro_batch_size: Annotated[int, Field(ge=1)] = 64
    """Completions in one forward pass, in whole prompts and at least one. The result is the same for any."""
    max_prompt_length: Annotated[int, Field(ge=1)] = 1024
    """Tokens; rankings with a longer prompt are dropped. IG C."""
    max_length: Annotated[int, Field(ge=2)] | None = None
    """Tokens of prompt, completion and EOS; rankings with more are dropped. Unset: the model's context."""
    gain: bool = False
    """Also scales scores to standard deviation 1 on the demonstrations (LHP, N R3). Changes what β means."""
    human_ceiling: Annotated[float, Field(gt=0, le=1)] | None = None
    """How often people agree with each other, shown beside the accuracy."""


class RewardModelConfig(StageConfig):
    """The whole file."""

    model: BackboneSection
    data: DataSection
    reward_model: RewardModelSection = RewardModelSection()
