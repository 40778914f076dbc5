"""The reference service put together: engine, data plane, servicer, metrics."""

from collections.abc import Callable

from lm.errors import InputError
from lm.folders import check_folder
from plaudit.v1 import reference_pb2_grpc
from services.batching import CallLimits
from services.reference.dataplane import ReferenceDataPlane
from services.reference.items import Engine
from services.reference.metrics import ReferenceMetrics
from services.reference.servicer import ReferenceServicer
from services.rpc.command import ModelOptions
from services.rpc.server import ServerMetrics, Service

FULL_NAME = "plaudit.v1.ReferenceService"


def reference_service(
    options: ModelOptions,
    limits: CallLimits | None = None,
    load_engine: Callable[[ModelOptions], Engine] | None = None,
) -> Service:
    """The service, nothing loaded yet. Raises InputError for an option that means nothing here."""
    if options.special_tokens_in_text != "refuse":
        raise InputError("--special-tokens-in-text", "the reference reads token ids only; leave it out")
    metrics = ServerMetrics()
    make_engine = load_engine or _load_engine
    limits = limits or CallLimits()
    plane = ReferenceDataPlane(lambda: make_engine(options), limits)
    reference_metrics = ReferenceMetrics(metrics.registry)
    servicer = ReferenceServicer(plane, reference_metrics)

    async def load() -> str:
        await plane.load()
        facts = plane.facts
        metrics.model.set(facts.model_id, facts.weights_sha256, facts.tokenizer_sha256, facts.dtype)
        metrics.watch_queue("reference", plane.batcher)
        reference_metrics.batches.watch(plane.batcher)
        return f"reference: {facts.model_id}, {facts.placement}, context {facts.context_length}"

    return Service(
        name="reference",
        full_names=(FULL_NAME,),
        register=lambda server: reference_pb2_grpc.add_ReferenceServiceServicer_to_server(servicer, server),
        load=load,
        drain=plane.close,
        metrics=metrics,
        max_request_bytes=limits.max_bytes,
    )


def _load_engine(options: ModelOptions) -> Engine:
    check_folder(options.model)  # its errors are told before torch is imported, which takes seconds
    from services.reference.engine import ReferenceEngine  # brings torch: after the port is bound

    return ReferenceEngine(
        options.model, options.device, options.dtype, options.threads, options.trust_remote_code
    )
