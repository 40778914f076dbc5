"""How much padding the batcher computes when a stream of texts comes in over gRPC."""

from collections.abc import Sequence

from grpc import aio

from benchmarks.served import Streamed
from benchmarks.workload import Text
from plaudit.v1 import reward_pb2_grpc
from services.batching import CallLimits, Ran
from services.reward.config import ModelSpec
from services.reward.engine import RewardEngine
from services.reward.metrics import RewardMetrics
from services.reward.models import RewardModels
from services.reward.service import FULL_NAME
from services.reward.servicer import RewardServicer
from services.rpc.background import serve_in_background
from services.rpc.interceptors import Readiness
from services.rpc.server import ServerMetrics, Service


def streamed_padding_share(engine: RewardEngine, texts: Sequence[Text]) -> float:
    """Share of the computed tokens that is padding, by the batcher's own count.

    In a server in this process, since only there the batcher can be heard; `engine` computes.
    """
    ran: list[Ran] = []
    models = RewardModels([ModelSpec("reward", "")], lambda _: engine, CallLimits())
    with serve_in_background(lambda: _service(models, ran)) as server:
        Streamed(server.address).score(texts)
    return 1 - sum(batch.tokens for batch in ran) / sum(batch.padded_tokens for batch in ran)


def _service(models: RewardModels, ran: list[Ran]) -> Service:
    metrics = ServerMetrics()

    def register(server: aio.Server) -> None:
        servicer = RewardServicer(models, RewardMetrics(metrics.registry), Readiness())
        reward_pb2_grpc.add_RewardServiceServicer_to_server(servicer, server)

    async def load() -> str:
        await models.load()
        (network,) = models.networks
        network.batcher.on_batch = ran.append
        return ""

    return Service("reward", (FULL_NAME,), register, load, models.close, metrics)
