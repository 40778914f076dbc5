"""Before the first step: every service is asked what it serves, and whether that fits together.

Nothing is generated before all of it does. What a person must mend comes as one line each, with the
service, the value and the configuration key.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from plaudit.clients import PolicyClient, ReferenceClient, RewardClient, WeightsClient
from plaudit.clients.data import CallLimits, ModelVersion, PolicyInfo, ReferenceInfo
from plaudit.clients.data_reward import RewardInfo
from plaudit.clients.errors import InvalidArgument, PlauditError
from trainer.errors import ConfigError, ServiceUnreachable, Stopped
from trainer.ppo.fleet import Fleet, open_fleet
from trainer.ppo.patience import Away, Endpoint, Patience
from trainer.ppo.remote import reward_form
from trainer.ppo.replica import Replica
from trainer.ppo.roles import RoleUnavailable
from trainer.ppo.run_sections import CLUSTER_SCHEME, ServicesSection

TRY_S = 10.0
"""Seconds of one question: who is there answers at once, and between questions a wish to stop is heard."""


@dataclass(frozen=True)
class Needs:
    """What the run asks of the services."""

    tokenizer_sha256: str
    """Of the learner."""
    vocabulary_size: int
    eos_token_ids: tuple[int, ...]
    longest_prompt: int
    """Tokens, of all prompts that are used."""
    response_length: int
    request_size: int
    """Prompts of one Generate request."""
    conversations: bool
    """Whether any prompt is one."""

    @property
    def longest(self) -> int:
        """Tokens of prompt and response together, at most."""
        return self.longest_prompt + self.response_length


@dataclass(frozen=True)
class Clients:
    """Connections to all services, opened when first used."""

    fleet: Fleet
    reference: ReferenceClient
    reference_endpoint: Endpoint
    reward: RewardClient
    reward_endpoint: Endpoint

    @classmethod
    def open(cls, services: ServicesSection) -> "Clients":
        """Clients with the configured deadline on every call. Raises ConfigError."""
        try:
            return cls._open(services)
        except InvalidArgument as error:  # of the environment: addresses have been checked
            raise ConfigError([f"services: {error}"]) from error

    @classmethod
    def _open(cls, services: ServicesSection) -> "Clients":
        timeout = services.call_timeout
        service, _, _ = services.policy[0].removeprefix(CLUSTER_SCHEME).rpartition(":")
        # Pods are called by address; what is in their certificates is the name of their Service.
        name = service if services.policy[0].startswith(CLUSTER_SCHEME) else None

        def open_replica(endpoint: Endpoint) -> Replica:
            address = endpoint.target
            return Replica(
                endpoint,
                PolicyClient(address, timeout=timeout, tls_name=name),
                WeightsClient(address, timeout=timeout, tls_name=name),
            )

        return cls(
            open_fleet(services.policy, open_replica),
            ReferenceClient(services.reference, timeout=timeout, hedge_after=services.hedge_after),
            Endpoint("reference", services.reference, "services.reference"),
            RewardClient(services.reward, timeout=timeout, hedge_after=services.hedge_after),
            Endpoint("reward", services.reward, "services.reward"),
        )

    def close(self) -> None:
        """Ends the connections."""
        self.fleet.close()
        self.reference.close()
        self.reward.close()


@dataclass(frozen=True)
class Found:
    """What the services said."""

    replicas: tuple[tuple[Endpoint, PolicyInfo], ...]
    """At least one."""
    reference: ReferenceInfo
    reward: RewardInfo

    @property
    def dtype(self) -> str:
        """What the policy computes in."""
        return self.replicas[0][1].dtype


def ask(clients: Clients, patience: Patience) -> Found:
    """Asks all services at once, and has `patience` with those that aren't there yet.

    Raises ServiceUnreachable naming each that didn't come, ConfigError for one that is no such service,
    Stopped if the run is to stop meanwhile.
    """
    timeout = min(patience.seconds, TRY_S)
    replicas = _first_replicas(clients.fleet, patience)
    with ThreadPoolExecutor(len(replicas) + 2, thread_name_prefix="preflight") as pool:
        policies = [
            pool.submit(patience.call, replica.endpoint, partial(replica.describe, timeout))
            for replica in replicas
        ]
        reference = pool.submit(
            patience.call,
            clients.reference_endpoint,
            partial(clients.reference.get_reference, timeout=timeout),
        )
        reward = pool.submit(
            patience.call, clients.reward_endpoint, partial(clients.reward.get_model, timeout=timeout)
        )
    endpoints = [replica.endpoint for replica in replicas]
    calls: list[Future[Any]] = [*policies, reference, reward]
    _raise_failures(
        [*endpoints, clients.reference_endpoint, clients.reward_endpoint],
        [call.exception() for call in calls],
    )
    infos = [call.result() for call in policies]
    return Found(tuple(zip(endpoints, infos, strict=True)), reference.result(), reward.result())


def _first_replicas(fleet: Fleet, patience: Patience) -> Sequence[Replica]:
    with patience.wait() as waiting:
        while True:
            try:
                return fleet.replicas()
            except Away as nobody:
                try:
                    waiting.pause(nobody)
                except RoleUnavailable as error:
                    raise ServiceUnreachable(str(error)) from nobody


def _raise_failures(endpoints: Sequence[Endpoint], errors: Sequence[BaseException | None]) -> None:
    stopped = next((error for error in errors if isinstance(error, Stopped)), None)
    if stopped is not None:
        raise stopped
    wrong = [
        f"{endpoint.key}: {error}"
        for endpoint, error in zip(endpoints, errors, strict=True)
        if isinstance(error, PlauditError)
    ]
    if wrong:
        raise ConfigError(wrong)
    away = [str(error) for error in errors if isinstance(error, RoleUnavailable)]
    if away:
        raise ServiceUnreachable("; ".join(away))


def check(found: Found, clients: Clients, needs: Needs) -> None:
    """Raises ConfigError with one line for each thing that doesn't fit."""
    problems = list(mismatches(found, clients, needs))
    if problems:
        raise ConfigError(problems)


def mismatches(found: Found, clients: Clients, needs: Needs) -> Iterator[str]:
    """What doesn't fit, a line each: key, service, value, and what would be right."""
    _, first = found.replicas[0]
    for endpoint, info in found.replicas:
        yield from _policy(endpoint, info, first, needs)
    yield from _tokens(
        clients.reference_endpoint, found.reference.model, found.reference.vocabulary_size, needs
    )
    yield from _context(clients.reference_endpoint, found.reference.context_length, needs.longest, needs)
    yield from _call(clients.reference_endpoint, found.reference.limits, 1, needs)
    yield from _reward(clients.reward_endpoint, found.reward, needs)


def _policy(endpoint: Endpoint, info: PolicyInfo, first: PolicyInfo, needs: Needs) -> Iterator[str]:
    yield from _tokens(endpoint, info.model, info.vocabulary_size, needs)
    yield from _context(endpoint, info.context_length, needs.longest, needs)
    yield from _call(endpoint, info.limits, needs.request_size, needs)
    if info.eos_token_ids != needs.eos_token_ids:
        yield _line(endpoint, f"ends responses at {info.eos_token_ids}, the learner at {needs.eos_token_ids}",
                    "serve the same model")  # fmt: skip
    if info.dtype != first.dtype:
        yield _line(endpoint, f"serves {info.dtype}, the first replica {first.dtype}",
                    "give all replicas the same --dtype")  # fmt: skip


def _reward(endpoint: Endpoint, info: RewardInfo, needs: Needs) -> Iterator[str]:
    if reward_form(info, needs.tokenizer_sha256) == "ids":
        yield from _context(endpoint, info.context_length, needs.longest, needs)
    elif needs.conversations and not info.has_chat_template:
        yield _line(endpoint, "has no chat template, and data.prompts holds conversations",
                    "serve a reward model with one, or use prompts of plain text")  # fmt: skip


def _tokens(endpoint: Endpoint, model: ModelVersion, vocabulary_size: int, needs: Needs) -> Iterator[str]:
    if model.tokenizer_sha256 != needs.tokenizer_sha256:
        yield _line(
            endpoint,
            f"has the tokenizer {model.tokenizer_sha256[:12]} of {model.model_id}, the learner (model.path) "
            f"{needs.tokenizer_sha256[:12]}",
            "policy, reference and learner need the same one",
        )
    elif vocabulary_size != needs.vocabulary_size:
        yield _line(endpoint, f"has a vocabulary of {vocabulary_size}, the learner (model.path) "
                    f"{needs.vocabulary_size}", "serve a model with the same output layer")  # fmt: skip


def _context(endpoint: Endpoint, context_length: int, longest: int, needs: Needs) -> Iterator[str]:
    if context_length < longest:
        yield _line(
            endpoint,
            f"has a context of {context_length} tokens; prompts of up to {needs.longest_prompt} and "
            f"sampling.response_length {needs.response_length} make {longest}",
            "lower sampling.response_length or sampling.max_prompt_length",
        )


def _call(endpoint: Endpoint, limits: CallLimits, items: int, needs: Needs) -> Iterator[str]:
    tokens = items * needs.longest
    if items > limits.max_items or tokens > limits.max_tokens:
        yield _line(endpoint, f"takes {limits.max_items} items and {limits.max_tokens} tokens a call, "
                    f"a request has up to {items} and {tokens}", "lower sampling.request_size")  # fmt: skip


def _line(endpoint: Endpoint, what: str, advice: str) -> str:
    return f"{endpoint.key}: {endpoint.role} at {endpoint.target} {what}: {advice}"


def describe(found: Found, clients: Clients, needs: Needs) -> Sequence[str]:
    """What was found and decided, for people."""
    form = reward_form(found.reward, needs.tokenizer_sha256)
    why = "the same tokenizer" if form == "ids" else "another tokenizer"
    policies = [
        f"{endpoint}: {info.model.model_id}, {info.dtype}, step {info.model.step}"
        for endpoint, info in found.replicas
    ]
    return [
        *policies,
        f"{clients.reference_endpoint}: {found.reference.model.model_id}, {found.reference.dtype}",
        f"{clients.reward_endpoint}: {found.reward.model.model_id}, {found.reward.dtype}, "
        f"asked in {form} ({why})",
    ]
