"""Clients of the reference, the frozen model that the KL penalty is measured against."""

from collections.abc import Sequence

from plaudit.clients import from_proto, to_proto
from plaudit.clients.calls import AsyncClient, Client
from plaudit.clients.channel import Method
from plaudit.clients.data import Logprobs, ReferenceInfo, TokenIds
from plaudit.v1.reference_pb2 import (
    ComputeLogprobsRequest,
    ComputeLogprobsResponse,
    GetReferenceRequest,
    GetReferenceResponse,
)

SERVICE = "plaudit.v1.ReferenceService"
COMPUTE_LOGPROBS: Method[ComputeLogprobsRequest, ComputeLogprobsResponse] = Method(
    SERVICE, "ComputeLogprobs", ComputeLogprobsResponse
)
GET_REFERENCE: Method[GetReferenceRequest, GetReferenceResponse] = Method(
    SERVICE, "GetReference", GetReferenceResponse
)


class ReferenceClient(Client):
    """Asks a frozen model how likely given tokens are.

    >>> from plaudit import ReferenceClient
    >>> with ReferenceClient("127.0.0.1:50053") as reference:
    ...     logprobs, model = reference.compute_logprobs([[5, 6, 7, 8], [9, 10]], starts=[2, 1])
    >>> [array.shape for array in logprobs]
    [(2,), (1,)]
    """

    _service = "reference"
    _may_hedge = True

    def compute_logprobs(
        self,
        sequences: Sequence[TokenIds],
        starts: Sequence[int],
        temperature: float = 1.0,
        *,
        timeout: float | None = None,
    ) -> Logprobs:
        """log p(ids[t] | ids[:t]) for t = start … of each sequence: one float32 array a sequence.

        `sequences` are prompt and response together, without padding; `starts`, aligned with them, is
        where the response begins, at least 1. Logits are divided by `temperature` first, as in
        sampling. Raises a PlauditError.
        """
        request = to_proto.logprobs_request(sequences, starts, temperature)
        return from_proto.logprobs(self._call(COMPUTE_LOGPROBS, request, timeout))

    def get_reference(self, *, timeout: float | None = None) -> ReferenceInfo:
        """What is loaded, on one replica where there are several."""
        return from_proto.reference_info(self._call(GET_REFERENCE, GetReferenceRequest(), timeout))


class AsyncReferenceClient(AsyncClient):
    """ReferenceClient to be awaited."""

    _service = "reference"
    _may_hedge = True

    async def compute_logprobs(
        self,
        sequences: Sequence[TokenIds],
        starts: Sequence[int],
        temperature: float = 1.0,
        *,
        timeout: float | None = None,
    ) -> Logprobs:
        """As ReferenceClient.compute_logprobs."""
        request = to_proto.logprobs_request(sequences, starts, temperature)
        return from_proto.logprobs(await self._call(COMPUTE_LOGPROBS, request, timeout))

    async def get_reference(self, *, timeout: float | None = None) -> ReferenceInfo:
        """As ReferenceClient.get_reference."""
        return from_proto.reference_info(await self._call(GET_REFERENCE, GetReferenceRequest(), timeout))
