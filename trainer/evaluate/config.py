"""Configuration of judges and of the comparison of two policies."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from trainer.config import Section, StageConfig
from trainer.paths import ModelPath, PlacePath, PluginPath

HOST_PORT = r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):\d{1,5}"
Address = Annotated[str, Field(pattern=rf"^{HOST_PORT}$")]
"""host:port"""
Count = Annotated[int, Field(ge=1)]


class JudgeSection(Section):
    """[judges.NAME]: who judges; exactly one of plugin, reward and path."""

    plugin: PluginPath | None = None
    """"path/to/file.py:Name" or "module:Name" of a function or class; see trainer.evaluate.judges."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the plug-in."""
    reward: Address | None = None
    """host:port of a reward service."""
    path: ModelPath | None = None
    """A reward model in Hugging Face format, loaded here."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(source is not None for source in (self.plugin, self.reward, self.path)) != 1:
            raise ValueError("needs exactly one of plugin, reward and path")
        if self.options and self.plugin is None:
            raise ValueError("options go to a plugin, and there is none")
        return self


class CandidateSection(Section):
    """[a] and [b]: one of the two policies; exactly one of path and address."""

    label: str = ""
    """What tables call it; its path or address if empty."""
    path: ModelPath | None = None
    """A model in Hugging Face format, loaded here."""
    address: Address | None = None
    """host:port of a policy service."""
    reference: Address | None = None
    """host:port of a reference service with the same weights as `address`: it gives the log-probabilities
    that the KL needs, which a policy service has for its own responses only."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.path is None) == (self.address is None):
            raise ValueError("needs exactly one of path and address")
        if self.reference is not None and self.address is None:
            raise ValueError("reference stands beside address; a path needs none")
        return self

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.label or self.path or self.address or ""


class PromptsSection(Section):
    """[data]: what both policies answer."""

    prompts: PlacePath
    """JSONL of {prompt} or {messages}."""
    limit: Count | None = None
    """Prompts to take, from the first on; all if unset."""


class ResponsesSection(Section):
    """[sampling]: how both policies answer."""

    response_length: Count
    """Most tokens of a response."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """0 takes the likeliest token; the KL then has no meaning and is left out."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a response beside the model's EOS."""
    batch_size: Count = 32
    """Prompts answered together."""


class BestOfNSection(Section):
    """[best_of_n]: the baseline that needs no training: n samples of A, the judge's favourite counts."""

    judge: str
    """Which of the judges picks."""
    n: Annotated[int, Field(ge=2)] = 4
    prompts: Count = 128
    """Prompts to do it for, from the first on: it costs n samples each."""


class PlacementSection(Section):
    """[placement]: where models given by path run."""

    device: str = "auto"
    dtype: str = "auto"


class EvaluateConfig(StageConfig):
    """`python -m trainer evaluate`: compares policy B with policy A on a file of prompts."""

    a: CandidateSection
    b: CandidateSection
    data: PromptsSection
    sampling: ResponsesSection
    judges: dict[str, JudgeSection] = Field(default_factory=dict)
    best_of_n: BestOfNSection | None = None
    control: bool = True
    """Whether A is compared with itself under other seeds: what a win rate of no difference looks like."""
    samples: Annotated[int, Field(ge=0)] = 20
    """Prompts whose responses are shown side by side: the first ones, unpicked."""
    placement: PlacementSection = PlacementSection()

    @model_validator(mode="after")
    def _known_judge(self) -> Self:
        if self.best_of_n and self.best_of_n.judge not in self.judges:
            known = ", ".join(self.judges) or "none"
            raise ValueError(f"best_of_n.judge {self.best_of_n.judge!r} is not one of the judges: {known}")
        return self
