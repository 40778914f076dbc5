"""Sections of PPO's configuration about what is around the maths: services, data, held-out evaluation."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from trainer.config import Section
from trainer.evaluate.config import HOST_PORT, Address, JudgeSection
from trainer.paths import PlacePath

CLUSTER_SCHEME = "kubernetes:///"
CLUSTER_SERVICE = rf"{CLUSTER_SCHEME}[a-z][a-z0-9-]*(\.[a-z0-9-]+)?:[a-z0-9-]+"
PolicyAddress = Annotated[str, Field(pattern=rf"^({HOST_PORT}|{CLUSTER_SERVICE})$")]
"""host:port, or kubernetes:///SERVICE[.NAMESPACE]:PORT with the port's name or number."""
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class ServicesSection(Section):
    """[services]: where the roles are. All of it may change when a run is resumed; the models may not."""

    volatile = frozenset(
        {"policy", "reference", "reward", "connect_timeout", "call_timeout", "patience", "hedge_after"}
    )

    policy: Annotated[tuple[PolicyAddress, ...], Field(min_length=1)]
    """host:port of every policy replica, each its own: weights never go through a load balancer. In a cluster
    one entry, kubernetes:///SERVICE:PORT, stands for all pods of a Service as they come and go."""
    reference: Address
    reward: Address
    connect_timeout: Seconds = 120.0
    """Seconds that the services may take to be ready before the first step; they may still be loading."""
    call_timeout: Seconds = 300.0
    """Seconds that one call may take, of judges that are services, too."""
    patience: Seconds = 180.0
    """Seconds, from the first call that failed, for which it is made again before the run stops with a
    checkpoint. With that call and the last one, the wait is patience + 2 · call_timeout at most."""
    hedge_after: Seconds | None = None
    """Seconds without an answer after which a call of reference or reward is made a second time; never if
    unset."""

    @model_validator(mode="after")
    def _different_replicas(self) -> Self:
        if len(set(self.policy)) < len(self.policy):
            raise ValueError("policy names a replica twice; each address once")
        if len(self.policy) > 1 and any(address.startswith(CLUSTER_SCHEME) for address in self.policy):
            raise ValueError(f"policy must be one {CLUSTER_SCHEME}SERVICE:PORT, or a list of host:port")
        return self


class DataSection(Section):
    """[data]: what the policy answers."""

    volatile = frozenset({"prompts", "pretraining"})  # what is in them has a digest

    prompts: PlacePath
    """JSONL of {prompt} or {messages}."""
    pretraining: PlacePath | None = None
    """JSONL of {text}, for ppo.ptx_coef above 0."""


class EvaluationSection(Section):
    """[evaluation]: what the run does on prompts it doesn't train on. The reward service always scores."""

    volatile = frozenset({"prompts"})  # what is in it has a digest

    prompts: PlacePath | None = None
    """JSONL of {prompt} or {messages}; no evaluation without."""
    limit: Count | None = None
    """Prompts to take, from the first on; all if unset."""
    every: Count = 50
    """Steps between evaluations; before the first step and after the last there is one in any case."""
    samples: Annotated[int, Field(ge=0)] = 20
    """Prompts whose responses are written down: the first ones, unpicked."""
    judges: dict[str, JudgeSection] = Field(default_factory=dict)
    """[evaluation.judges.NAME]: judges beside the reward service, whose own name is "reward"."""
    best_by: str = "reward"
    """Judge whose mean score says which evaluation was best."""
    keep_best: bool = False
    """Whether the policy that is saved at the end is the one of the best evaluation, not of the last step."""
    stop_after: Count | None = None
    """Evaluations in a row without a new best after which the run ends; never if unset."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if "reward" in self.judges:
            raise ValueError('judges can\'t have one named "reward": so the reward service is called')
        if self.best_by != "reward" and self.best_by not in self.judges:
            known = ", ".join(["reward", *self.judges])
            raise ValueError(f"best_by {self.best_by!r} is not one of the judges: {known}")
        if self.prompts is None and (self.keep_best or self.stop_after or self.judges):
            raise ValueError("prompts is needed for judges, keep_best and stop_after")
        return self
