"""Which scope opens which method. What isn't in the table is closed to everybody."""

from plaudit.access import SCOPES

OPEN = ""
"""The scope of what anybody may call."""
STANDARD = ("grpc.health.", "grpc.reflection.", "grpc.channelz.")
"""Prefixes of the services that tell about a server; they answer while it loads and drains."""

METHODS = {
    "plaudit.v1.PolicyService": {"Generate": "generate", "GetPolicy": "generate"},
    "plaudit.v1.WeightsService": {
        "BeginPush": "weights:push",
        "PushChunks": "weights:push",
        "GetPush": "weights:push",
        "CommitPush": "weights:push",
        "AbortPush": "weights:push",
        "LoadFromUri": "weights:push",
        "WatchPolicyVersion": "generate",
    },
    "plaudit.v1.ReferenceService": {"ComputeLogprobs": "logprobs", "GetReference": "logprobs"},
    "plaudit.v1.RewardService": {
        "Score": "score",
        "ScoreStream": "score",
        "Rank": "score",
        "Compare": "score",
        "GetModel": "score",
        "ListModels": "score",
    },
    "plaudit.v1.TrainerService": {
        "GetRun": "trainer:read",
        "WatchRun": "trainer:read",
        "StopRun": "trainer:control",
    },
    "inference.GRPCInferenceService": {
        "ServerLive": "score",
        "ServerReady": "score",
        "ModelReady": "score",
        "ServerMetadata": "score",
        "ModelMetadata": "score",
        "ModelInfer": "score",
    },
    "grpc.health.v1.Health": {"Check": OPEN, "Watch": OPEN},
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": "admin"},
    "grpc.channelz.v1.Channelz": {
        "GetTopChannels": "admin",
        "GetServers": "admin",
        "GetServer": "admin",
        "GetServerSockets": "admin",
        "GetChannel": "admin",
        "GetSubchannel": "admin",
        "GetSocket": "admin",
    },
}

ALL = frozenset(SCOPES)


def scope_of(service: str, method: str) -> str | None:
    """The scope that a caller needs; OPEN if none, None where nobody may call."""
    return METHODS.get(service, {}).get(method)
