"""The open inference protocol, version 2, over gRPC: what KServe's and Triton's clients speak.

The models and queues are those of plaudit.v1.RewardService; a row of the tensors is a pair of prompt and
response.
"""

from typing import TYPE_CHECKING

from services.errors import InvalidInput
from services.oip import open_inference_pb2 as oip, open_inference_pb2_grpc
from services.reward import answers, oip_convert
from services.reward.interface import Options, score
from services.reward.metrics import RewardMetrics
from services.reward.models import RewardModels
from services.rpc.callers import caller_of, deadline_of
from services.rpc.interceptors import Readiness
from services.rpc.metrics import release
from services.rpc.quotas import charge
from services.rpc.readable import request_size

if TYPE_CHECKING:
    from services.rpc.calls import Context

FULL_NAME = "inference.GRPCInferenceService"
ALWAYS = tuple(
    f"{FULL_NAME}/{method}" for method in ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata")
)
"""What answers while the models load and while the server drains."""


class OpenInferenceServicer(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Scores pairs; but for the methods in ALWAYS called only when the models are loaded."""

    def __init__(self, models: RewardModels, metrics: RewardMetrics, readiness: Readiness) -> None:
        self._models = models
        self._metrics = metrics
        self._readiness = readiness

    async def ServerLive(self, request: oip.ServerLiveRequest, context: "Context") -> oip.ServerLiveResponse:
        """Whoever can ask is answered yes."""
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: oip.ServerReadyRequest, context: "Context"
    ) -> oip.ServerReadyResponse:
        """Whether pairs would be scored now."""
        return oip.ServerReadyResponse(ready=self._readiness.is_open)

    async def ModelReady(self, request: oip.ModelReadyRequest, context: "Context") -> oip.ModelReadyResponse:
        """Models are ready together; an unknown name or version is NOT_FOUND."""
        model = self._models.get(request.name)
        ready = self._readiness.is_open
        if ready:  # what isn't loaded has no version yet
            oip_convert.check_version(request.version, model)
        return oip.ModelReadyResponse(ready=ready)

    async def ServerMetadata(
        self, request: oip.ServerMetadataRequest, context: "Context"
    ) -> oip.ServerMetadataResponse:
        """Names the server; it has no extensions of the protocol."""
        return oip.ServerMetadataResponse(name="plaudit", version=release())

    async def ModelMetadata(
        self, request: oip.ModelMetadataRequest, context: "Context"
    ) -> oip.ModelMetadataResponse:
        """Describes a model."""
        model = self._models.get(request.name)
        oip_convert.check_version(request.version, model)
        return oip_convert.metadata_response(model)

    async def ModelInfer(self, request: oip.ModelInferRequest, context: "Context") -> oip.ModelInferResponse:
        """Scores pairs. A tensor has no place for an error: a bad row fails the call, or is NaN if asked."""
        model = self._models.get(request.model_name)
        oip_convert.check_version(request.model_version, model)
        outputs = oip_convert.outputs(request)
        asked = oip_convert.parameters(request)
        options = Options(
            asked["truncation"],
            caller=caller_of(context),
            deadline=deadline_of(context),
            charge=charge,
            size=request_size.get(),
        )
        model.admit(oip_convert.declared_rows(request, self._models.limits.max_items), options)
        items = oip_convert.pairs(request, self._models.limits.max_items)
        try:
            scored = await score(model, items, oip_convert.fields(len(items)), options)
            self._metrics.count(scored.outcomes)
            if asked["bad_rows"] == "error":
                answers.all_scores(scored.outcomes)
        except InvalidInput as error:
            raise oip_convert.renamed(error) from None
        return oip_convert.infer_response(request, model, outputs, scored.outcomes)
