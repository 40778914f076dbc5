"""Plaudit's light client: typed access to the policy, reward, reference and trainer services. No torch.

    >>> from plaudit import RewardClient
    >>> with RewardClient("127.0.0.1:50052") as reward:
    ...     scores = reward.score([("The film was", " a joy."), ("The film was", " a bore.")])
    >>> scores.rewards.shape
    (2,)

Everything in plaudit.clients is here too; it is imported when it is first asked for, so that
`import plaudit` costs nothing and a server that needs plaudit.v1 loads no client.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from plaudit.clients import (
        Aborted as Aborted,
        AsyncPolicyClient as AsyncPolicyClient,
        AsyncReferenceClient as AsyncReferenceClient,
        AsyncRewardClient as AsyncRewardClient,
        AsyncTrainerClient as AsyncTrainerClient,
        AsyncWeightsClient as AsyncWeightsClient,
        CallLimits as CallLimits,
        Chat as Chat,
        Comparison as Comparison,
        ComponentInfo as ComponentInfo,
        DataLoss as DataLoss,
        DeadlineExceeded as DeadlineExceeded,
        FailedPrecondition as FailedPrecondition,
        GeneratedSequence as GeneratedSequence,
        GenerateOptions as GenerateOptions,
        Generation as Generation,
        Internal as Internal,
        InvalidArgument as InvalidArgument,
        ItemFailure as ItemFailure,
        ListedModel as ListedModel,
        Logprobs as Logprobs,
        ModelVersion as ModelVersion,
        NotFound as NotFound,
        NotSecure as NotSecure,
        Overloaded as Overloaded,
        PermissionDenied as PermissionDenied,
        PlauditError as PlauditError,
        PolicyClient as PolicyClient,
        PolicyInfo as PolicyInfo,
        Precondition as Precondition,
        Priority as Priority,
        Prompt as Prompt,
        PushManifest as PushManifest,
        PushStatus as PushStatus,
        QueueDepth as QueueDepth,
        RankedCandidate as RankedCandidate,
        Ranking as Ranking,
        ReferenceClient as ReferenceClient,
        ReferenceInfo as ReferenceInfo,
        Resource as Resource,
        Reward as Reward,
        RewardClient as RewardClient,
        RewardComponent as RewardComponent,
        RewardInfo as RewardInfo,
        Run as Run,
        RunEvent as RunEvent,
        Scorable as Scorable,
        ScoreOptions as ScoreOptions,
        Scores as Scores,
        TensorSpec as TensorSpec,
        Timing as Timing,
        TokenIds as TokenIds,
        TrainerClient as TrainerClient,
        Truncation as Truncation,
        Unauthenticated as Unauthenticated,
        Unavailable as Unavailable,
        Unimplemented as Unimplemented,
        UnrankedCandidate as UnrankedCandidate,
        Unreachable as Unreachable,
        VersionSpan as VersionSpan,
        Violation as Violation,
        WeightsClient as WeightsClient,
    )


def __getattr__(name: str) -> object:
    if name == "__all__":
        return import_module("plaudit.clients").__all__
    clients = import_module("plaudit.clients")
    if name not in clients.__all__:
        raise AttributeError(f"module 'plaudit' has no attribute {name!r}")
    return getattr(clients, name)


def __dir__() -> list[str]:
    return [*globals(), *import_module("plaudit.clients").__all__]
