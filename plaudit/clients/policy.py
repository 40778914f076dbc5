"""Clients of the policy, the model that writes responses."""

from collections.abc import Sequence
from typing import Unpack

from plaudit.clients import from_proto, to_proto
from plaudit.clients.calls import AsyncClient, Client
from plaudit.clients.channel import Method
from plaudit.clients.data import GenerateOptions, Generation, PolicyInfo, Prompt
from plaudit.v1.policy_pb2 import GenerateRequest, GenerateResponse, GetPolicyRequest, GetPolicyResponse

SERVICE = "plaudit.v1.PolicyService"
GENERATE: Method[GenerateRequest, GenerateResponse] = Method(SERVICE, "Generate", GenerateResponse)
GET_POLICY: Method[GetPolicyRequest, GetPolicyResponse] = Method(SERVICE, "GetPolicy", GetPolicyResponse)


class PolicyClient(Client):
    """Asks a policy for responses.

    >>> from plaudit import PolicyClient
    >>> with PolicyClient("127.0.0.1:50051") as policy:
    ...     generation = policy.generate(["A film about"], max_new_tokens=8, seeds=[7])
    >>> sequence = generation.sequences[0]
    >>> len(sequence.token_ids) == len(sequence.logprobs) <= 8
    True
    """

    _service = "policy"

    def generate(
        self, prompts: Sequence[Prompt], *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> Generation:
        """Samples responses to `prompts`, each a text, a Chat or token ids.

        `options` are those of GenerateOptions; max_new_tokens is the one that must be given.
        `timeout` in seconds, for this call.

        Raises InvalidArgument, FailedPrecondition (another step is loaded), Overloaded, Unavailable,
        DeadlineExceeded or another PlauditError.
        """
        request = to_proto.generate_request(prompts, **options)
        return from_proto.generation(self._call(GENERATE, request, timeout))

    def get_policy(self, *, timeout: float | None = None) -> PolicyInfo:
        """What is loaded, on one replica where there are several.

        >>> from plaudit import PolicyClient
        >>> with PolicyClient("127.0.0.1:50051") as policy:
        ...     info = policy.get_policy()
        >>> info.context_length, info.dtype, info.model.step
        (128, 'float32', 0)
        """
        return from_proto.policy_info(self._call(GET_POLICY, GetPolicyRequest(), timeout))


class AsyncPolicyClient(AsyncClient):
    """PolicyClient to be awaited.

    >>> import asyncio
    >>> from plaudit import AsyncPolicyClient, Chat
    >>> async def answer(question: str) -> str:
    ...     async with AsyncPolicyClient("127.0.0.1:50051") as policy:
    ...         generation = await policy.generate([Chat([("user", question)])], max_new_tokens=8)
    ...     return generation.sequences[0].text
    >>> type(asyncio.run(answer("Which film?")))
    <class 'str'>
    """

    _service = "policy"

    async def generate(
        self, prompts: Sequence[Prompt], *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> Generation:
        """As PolicyClient.generate."""
        request = to_proto.generate_request(prompts, **options)
        return from_proto.generation(await self._call(GENERATE, request, timeout))

    async def get_policy(self, *, timeout: float | None = None) -> PolicyInfo:
        """As PolicyClient.get_policy."""
        return from_proto.policy_info(await self._call(GET_POLICY, GetPolicyRequest(), timeout))
