"""The policy service put together: engine, pushes, data plane, two servicers, metrics."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from grpc import aio

from lm.folders import check_folder
from plaudit.v1 import policy_pb2_grpc, weights_pb2_grpc
from services.batching import CallLimits
from services.policy.dataplane import PolicyDataPlane
from services.policy.interface import Version
from services.policy.metrics import PolicyMetrics
from services.policy.servicer import PolicyServicer
from services.policy.weights_roots import WeightsRoots
from services.policy.weights_servicer import WeightsServicer
from services.rpc.command import ModelOptions
from services.rpc.interceptors import Readiness
from services.rpc.server import ServerMetrics, Service

if TYPE_CHECKING:
    from services.policy.model import ServedModel

FULL_NAMES = ("plaudit.v1.PolicyService", "plaudit.v1.WeightsService")


def policy_service(
    options: ModelOptions, limits: CallLimits | None = None, weights_roots: Sequence[str] = ()
) -> Service:
    """The service, nothing loaded yet; `weights_roots` are folders that LoadFromUri may read.

    Raises InputError for a folder that isn't there.
    """
    metrics, readiness, limits = ServerMetrics(), Readiness(), limits or CallLimits()

    def on_version(version: Version) -> None:
        facts = plane.engine.facts
        metrics.model.set(
            facts.model_id,
            version.weights_sha256,
            facts.tokenizer_sha256,
            facts.dtype,
            run_id=version.run_id,
            step=version.step,
        )

    plane = PolicyDataPlane(
        lambda: _load_model(options),
        limits,
        PolicyMetrics(metrics.registry),
        on_version,
        WeightsRoots(weights_roots),
    )

    async def load() -> str:
        await plane.load()
        metrics.watch_queue("policy", plane.engine.queue)
        facts = plane.engine.facts
        return f"policy: {facts.model_id}, {facts.placement}, context {facts.context_length}"

    return Service(
        name="policy",
        full_names=FULL_NAMES,
        register=_register(plane, readiness),
        load=load,
        drain=plane.close,
        metrics=metrics,
        readiness=readiness,
        max_request_bytes=limits.max_bytes,
    )


def _register(plane: PolicyDataPlane, readiness: Readiness) -> Callable[[aio.Server], None]:
    def register(server: aio.Server) -> None:
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(PolicyServicer(plane), server)
        weights_pb2_grpc.add_WeightsServiceServicer_to_server(WeightsServicer(plane, readiness), server)

    return register


def _load_model(options: ModelOptions) -> "ServedModel":
    check_folder(options.model)  # its errors are told before torch is imported, which takes seconds
    from services.policy.model import load_model  # brings torch: after the port is bound

    return load_model(
        options.model, options.device, options.dtype, options.threads, options.special_tokens_in_text,
        options.trust_remote_code,
    )  # fmt: skip
