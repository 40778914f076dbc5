"""The reward service put together: engine, data plane, servicer, metrics."""

from collections.abc import Callable

from plaudit.v1 import reward_pb2_grpc
from services.batching import CallLimits
from services.reward.dataplane import RewardDataPlane
from services.reward.items import Engine
from services.reward.metrics import RewardMetrics
from services.reward.servicer import RewardServicer
from services.rpc.command import ModelOptions
from services.rpc.server import ServerMetrics, Service

FULL_NAME = "plaudit.v1.RewardService"


def reward_service(
    options: ModelOptions,
    limits: CallLimits | None = None,
    load_engine: Callable[[ModelOptions], Engine] | None = None,
) -> Service:
    """The service, nothing loaded yet."""
    metrics = ServerMetrics()
    make_engine = load_engine or _load_engine
    plane = RewardDataPlane(lambda: make_engine(options), limits or CallLimits())
    servicer = RewardServicer(plane, RewardMetrics(metrics.registry))

    async def load() -> str:
        await plane.load()
        facts = plane.facts
        metrics.set_model(facts.model_id, facts.weights_sha256, facts.tokenizer_sha256, facts.dtype)
        metrics.watch_queue("reward", plane.batcher)
        return f"reward: {facts.model_id}, {facts.placement}, context {facts.context_length}"

    return Service(
        name="reward",
        full_names=(FULL_NAME,),
        register=lambda server: reward_pb2_grpc.add_RewardServiceServicer_to_server(servicer, server),
        load=load,
        drain=plane.close,
        metrics=metrics,
    )


def _load_engine(options: ModelOptions) -> Engine:
    from services.reward.engine import RewardEngine  # brings torch: after the port is bound

    return RewardEngine(options.model, options.device, options.dtype, options.threads)
