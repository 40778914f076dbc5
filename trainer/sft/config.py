"""Configuration of supervised fine-tuning. Sources as in trainer.config."""

from typing import Annotated, Literal

from pydantic import Field

from trainer.config import AdamSection, ModelSection, Section, StageConfig
from trainer.paths import PlacePath

Share = Annotated[float, Field(ge=0, lt=1)]


class DataSection(Section):
    """[data]: demonstrations, as {"prompt", "completion"} or {"messages"} lines."""

    volatile = frozenset({"train", "validation"})  # what is in them has a digest

    train: PlacePath
    validation: PlacePath | None = None
    """Measured after each epoch; needed by select = "best_loss"."""


class SFTSection(AdamSection):
    """[sft]: the recipe. Small scale: 1 to 4 epochs at 1e-4 to 5e-4."""

    volatile = frozenset({"select"})

    num_train_epochs: Annotated[int, Field(ge=1)] = 16
    """IG C.1."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Demonstrations an optimiser step. IG C.1 (1.3B and 6B)."""
    learning_rate: Annotated[float, Field(gt=0)] = 9.65e-6
    """Peak. IG C.1 (1.3B and 6B)."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """IG C.1: none."""
    min_lr_rate: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Where the cosine ends, as a share of the peak. IG C.1."""
    max_prompt_length: Annotated[int, Field(ge=1)] = 1024
    """Tokens; longer prompts are dropped, never cut. IG C."""
    max_length: Annotated[int, Field(ge=2)] | None = None
    """Tokens of prompt, completion and EOS; longer demonstrations are dropped. Unset: the model's context."""
    residual_dropout: Share = 0.0
    """IG C.1: 0.2. Off, and an error where the architecture has none (Llama has attention dropout only)."""
    attention_dropout: Share = 0.0
    """Off. Ours, for architectures without residual dropout."""
    select: Literal["last", "best_loss"] | Annotated[int, Field(ge=1)] = "last"
    """Which epoch becomes the policy: the last, the one of the least validation loss, or its number.

    All are kept; the paper chooses by the reward model's score (IG C.1), so choose again after stage 2:
    the same command with --resume --set sft.select=K.
    """


class SFTConfig(StageConfig):
    """The whole file."""

    model: ModelSection
    data: DataSection
    sft: SFTSection = SFTSection()
