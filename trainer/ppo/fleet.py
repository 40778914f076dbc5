"""Which policy replicas there are: those that the configuration names, or those that a cluster has now."""

from collections.abc import Callable, Sequence
from typing import Protocol

from plaudit.clients.errors import Unavailable
from trainer.ppo.cluster_policy import watch_pods
from trainer.ppo.patience import Away, Endpoint
from trainer.ppo.replica import Replica
from trainer.ppo.run_sections import CLUSTER_SCHEME

KEY = "services.policy"


class Discovery(Protocol):
    """Keeps watching where the pods of a service are."""

    def addresses(self) -> frozenset[str]:
        """host:port of each pod that is ready, as far as is known now; never waits."""
        ...

    def close(self) -> None:
        """Ends the watch."""
        ...


class Fleet(Protocol):
    """The replicas that weights are pushed to and prompts are sent to."""

    def replicas(self) -> Sequence[Replica]:
        """Those there are now, at least one. Raises Away if there is none."""
        ...

    def close(self) -> None:
        """Ends the connections."""
        ...


class NamedFleet:
    """The replicas of `services.policy`, a list: they may be away for a while, but they don't change."""

    def __init__(self, addresses: Sequence[str], open_replica: Callable[[Endpoint], Replica]) -> None:
        self._replicas = tuple(
            open_replica(Endpoint("policy", address, f"{KEY}[{index}]"))
            for index, address in enumerate(addresses)
        )

    def replicas(self) -> Sequence[Replica]:
        """As Fleet.replicas."""
        return self._replicas

    def close(self) -> None:
        """As Fleet.close."""
        for replica in self._replicas:
            replica.close()


class DiscoveredFleet:
    """The replicas that `discovery` finds. One that left is forgotten, and its connection ends with the run.

    Its calls may still be under way: a pod that is being deleted finishes them.
    """

    def __init__(
        self, target: str, discovery: Discovery, open_replica: Callable[[Endpoint], Replica]
    ) -> None:
        """`target` says in messages what is looked for."""
        self._endpoint = Endpoint("policy", target, KEY)
        self._discovery = discovery
        self._open_replica = open_replica
        self._opened: dict[str, Replica] = {}

    def replicas(self) -> Sequence[Replica]:
        """As Fleet.replicas. For the main thread only."""
        addresses = sorted(self._discovery.addresses())
        if not addresses:
            raise Away(self._endpoint, Unavailable("no pod of it is ready"))
        for address in addresses:
            if address not in self._opened:
                self._opened[address] = self._open_replica(Endpoint("policy", address, KEY))
        return [self._opened[address] for address in addresses]

    def close(self) -> None:
        """As Fleet.close."""
        self._discovery.close()
        for replica in self._opened.values():
            replica.close()


def open_fleet(policy: Sequence[str], open_replica: Callable[[Endpoint], Replica]) -> Fleet:
    """The fleet that `services.policy` describes. Raises ConfigError, ServiceUnreachable for a cluster's."""
    if policy[0].startswith(CLUSTER_SCHEME):
        return DiscoveredFleet(policy[0], watch_pods(policy[0]), open_replica)
    return NamedFleet(policy, open_replica)
