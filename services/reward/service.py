"""The reward service put together: models, servicer, metrics."""

from collections.abc import Callable

from grpc import aio

from lm.folders import check_folder
from lm.roots import Roots
from plaudit.v1 import reward_pb2_grpc
from services.batching import CallLimits
from services.oip import open_inference_pb2_grpc
from services.reward import oip
from services.reward.config import ModelSpec, model_specs
from services.reward.items import Engine, ModelFacts
from services.reward.metrics import RewardMetrics
from services.reward.models import RewardModels
from services.reward.servicer import RewardServicer
from services.rpc.command import ModelOptions
from services.rpc.interceptors import Readiness
from services.rpc.server import ServerMetrics, Service

FULL_NAME = "plaudit.v1.RewardService"


def reward_service(
    options: ModelOptions,
    limits: CallLimits | None = None,
    load_engine: Callable[[ModelSpec], Engine] | None = None,
    roots: Roots | None = None,
) -> Service:
    """The service, nothing loaded yet. Raises InputError for a wrong file of models.

    `roots` are the folders below which the models of a file must lie.
    """
    metrics = ServerMetrics()
    reward_metrics = RewardMetrics(metrics.registry)
    limits = limits or CallLimits()
    models = RewardModels(model_specs(options, roots), load_engine or _load_engine, limits)
    readiness = Readiness(oip.ALWAYS)

    def register(server: aio.Server) -> None:
        reward_pb2_grpc.add_RewardServiceServicer_to_server(
            RewardServicer(models, reward_metrics, readiness), server
        )
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            oip.OpenInferenceServicer(models, reward_metrics, readiness), server
        )

    async def load() -> str:
        await models.load()
        for network in models.networks:
            facts = network.facts
            metrics.model.add(facts.model_id, facts.weights_sha256, facts.tokenizer_sha256, facts.dtype)
            reward_metrics.watch(network)
        return "\n".join(f"{model.name}: {_line(model.facts)}" for model in models.all)

    return Service(
        name="reward",
        full_names=(FULL_NAME, oip.FULL_NAME),
        register=register,
        load=load,
        drain=models.close,
        metrics=metrics,
        readiness=readiness,
        max_request_bytes=limits.max_bytes,
    )


def _line(facts: ModelFacts) -> str:
    return f"{facts.model_id}, {facts.placement}, context {facts.context_length}"


def _load_engine(spec: ModelSpec) -> Engine:
    check_folder(spec.path)  # its errors are told before torch is imported, which takes seconds
    from services.reward.engine import RewardEngine  # brings torch: after the port is bound

    return RewardEngine(
        spec.path, spec.device, spec.dtype, spec.threads, spec.special_tokens_in_text, spec.trust_remote_code
    )
