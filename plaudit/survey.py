"""What stands at an address: which of our services, with which models, how they are."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypedDict

from plaudit.clients import (
    ModelVersion,
    PlauditError,
    PolicyClient,
    QueueDepth,
    ReferenceClient,
    RewardClient,
    TrainerClient,
    Unavailable,
    Unimplemented,
)
from plaudit.health import Health, HealthClient


@dataclass(frozen=True)
class Sight:
    """One model at an address, one training run, or the reason why nothing is known."""

    address: str
    service: str = ""
    """policy, reward, reference or trainer; empty if none is found."""
    health: Health | None = None
    """None where that isn't known."""
    name: str = ""
    """Of a reward model on its server, or of a run."""
    model: ModelVersion | None = None
    step: str = ""
    queue: QueueDepth | None = None
    error: str = ""
    """Why there is no more; empty if all is well."""
    away: bool = False
    """Whether nobody answers, or isn't ready to."""


class _How(TypedDict):
    """As clients take it."""

    timeout: float
    tls_name: str | None


def survey(
    addresses: Sequence[str], timeout: float, tls_names: Mapping[str, str] | None = None
) -> list[Sight]:
    """All that stands at `addresses`, asked at once and told in their order; `timeout` seconds a call.

    `tls_names` are those in the certificates of addresses that have another than their host there. Raises
    InvalidArgument for what is no address, and for a token that would go over the network for all to read;
    whatever else goes wrong is in the answer.
    """
    names = tls_names or {}
    hows = [_How(timeout=timeout, tls_name=names.get(address)) for address in addresses]
    clients = [HealthClient(address, **how) for address, how in zip(addresses, hows, strict=True)]
    with ThreadPoolExecutor(max_workers=16) as pool:
        return [sight for sights in pool.map(_look, clients, hows) for sight in sights]


def _look(client: HealthClient, how: _How) -> list[Sight]:
    (address,) = client.addresses
    with client:
        try:
            healths = _healths(client)
        except PlauditError as error:
            return [Sight(address, error=error.reason, away=isinstance(error, Unavailable))]
    found = [_ask(address, name, health, how) for name, health in healths.items()]
    nothing = Sight(address, error="a server, but none of Plaudit's services")
    return [sight for sights in found for sight in sights] or [nothing]


def _healths(client: HealthClient) -> dict[str, Health | None]:
    """By the services that may be there; of a server that knows no health, all may."""
    try:
        asked = {name: client.check(full_name) for name, (full_name, _) in _SERVICES.items()}
    except Unimplemented:
        return dict.fromkeys(_SERVICES)
    return {name: health for name, health in asked.items() if health != "not there"}


def _ask(address: str, name: str, health: Health | None, how: _How) -> list[Sight]:
    seen = Sight(address, name, health)
    if health == "not serving":
        return [replace(seen, error="loading, or shutting down", away=True)]
    try:
        return [replace(sight, service=name, health=health) for sight in _SERVICES[name][1](address, how)]
    except Unimplemented as error:
        return [] if health is None else [replace(seen, error=error.reason)]
    except PlauditError as error:
        return [replace(seen, error=error.reason, away=isinstance(error, Unavailable))]


def _policy(address: str, how: _How) -> Iterator[Sight]:
    with PolicyClient(address, **how) as client:
        info = client.get_policy()
    yield Sight(address, model=info.model, step=str(info.model.step), queue=info.queue)


def _reward(address: str, how: _How) -> Iterator[Sight]:
    with RewardClient(address, **how) as client:
        models = client.list_models()
    for each in models:
        yield Sight(address, name=each.name, model=each.model, step=str(each.model.step), queue=each.queue)


def _reference(address: str, how: _How) -> Iterator[Sight]:
    with ReferenceClient(address, **how) as client:
        info = client.get_reference()
    yield Sight(address, model=info.model, step=str(info.model.step), queue=info.queue)


def _trainer(address: str, how: _How) -> Iterator[Sight]:
    with TrainerClient(address, **how) as client:
        run = client.get_run()
    name = f"{run.run_id} ({run.stage}, {run.state})"
    yield Sight(address, name=name, step=f"{run.step} of {run.total_steps}", error=run.error)


_SERVICES: dict[str, tuple[str, Callable[[str, _How], Iterator[Sight]]]] = {
    "policy": ("plaudit.v1.PolicyService", _policy),
    "reward": ("plaudit.v1.RewardService", _reward),
    "reference": ("plaudit.v1.ReferenceService", _reference),
    "trainer": ("plaudit.v1.TrainerService", _trainer),
}
