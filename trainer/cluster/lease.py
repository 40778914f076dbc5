"""A Lease, so that one trainer drives a policy: who comes second waits, or is told who was first.

As client-go's leader election: a Lease counts as given up once nobody has renewed it for as long as it
says, by the clock of the one who watches. What differs: while the API server is away the holder keeps its
Lease, since nobody else can take it either, and policy servers refuse the pushes of a second trainer anyway.
"""

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime

from trainer.cluster.calls import Cluster, Object
from trainer.cluster.errors import Changed, ClusterError

DURATION_S = 30
RENEW_S = 10.0
LOOK_S = 2.0
"""How often somebody who waits looks."""

logger = logging.getLogger(__name__)


class LeaseHeld(Exception):
    """Another trainer has the Lease; says which, and since when."""


class Lease:
    """From acquire to release this process holds the Lease, or learns that it has lost it."""

    def __init__(self, cluster: Cluster, name: str, holder: str, lost: Callable[[], None]) -> None:
        """`lost` is called, in another thread, when somebody else has taken the Lease."""
        self._cluster, self._name, self._holder, self._lost = cluster, name, holder, lost
        self._done = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name=f"lease-{name}", daemon=True)

    def acquire(self, patience: float, wait: Callable[[float], bool]) -> None:
        """Takes the Lease, after `patience` seconds of another holder's at most, and renews it from now on.

        `wait` sleeps, and says whether to give up. Raises LeaseHeld, ClusterError.
        """
        clock = self._cluster.clock
        seen, since = None, clock.monotonic()
        end = since + patience
        while (other := self._try_to_take(expired=clock.monotonic() - since > DURATION_S)) is not None:
            if seen is None:
                logger.warning("%s; waiting for it", self._held(other))
            if other["spec"] != seen:
                seen, since = other["spec"], clock.monotonic()
            if clock.monotonic() >= end or wait(LOOK_S):
                raise LeaseHeld(self._held(other))
        self._renewing.start()

    def release(self) -> None:
        """Gives it back, if it is still ours; while the API server is away, it is left to expire."""
        self._done.set()
        self._renewing.join()
        try:
            found = self._read()
            if found is not None and not self._is_of_another(found):
                self._write(found, "")
        except ClusterError as error:
            logger.warning("the Lease %s could not be given back, it expires: %s", self._name, error)

    def _try_to_take(self, expired: bool) -> Object | None:
        """Takes the Lease if nobody has it, or the one who has it is `expired`; else who has it."""
        found = self._read()
        if found is not None and self._is_of_another(found) and not expired:
            return found
        try:
            self._write(found, self._holder)
        except Changed:  # somebody was quicker
            return self._try_to_take(expired=False)
        return None

    def _is_of_another(self, lease: Object) -> bool:
        return (lease["spec"].get("holderIdentity") or self._holder) != self._holder

    def _renew(self) -> None:
        while not self._done.wait(RENEW_S):
            try:
                found = self._read()
                if found is not None and self._is_of_another(found):
                    logger.error("%s; this run stops", self._held(found))
                    self._lost()
                    return
                self._write(found, self._holder)
            except ClusterError as error:
                logger.warning("the Lease %s could not be renewed: %s", self._name, error)

    def _read(self) -> Object | None:
        return self._cluster.get("Lease", self._name)

    def _write(self, found: Object | None, holder: str) -> None:
        """Creates or replaces it. Raises Changed if somebody has written it since it was read."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        former = (found or {}).get("spec", {})
        same = former.get("holderIdentity") == holder
        spec = {
            "holderIdentity": holder,
            "leaseDurationSeconds": DURATION_S,
            "acquireTime": former["acquireTime"] if same else now,
            "renewTime": now,
            "leaseTransitions": former.get("leaseTransitions", 0) + (0 if same else 1),
        }
        new = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._cluster.namespace},
        }
        self._cluster.write({**(found or new), "spec": spec})

    def _held(self, lease: Object) -> str:
        spec = lease["spec"]
        return (
            f"another trainer, {spec['holderIdentity']}, has held the Lease "
            f"{self._cluster.namespace}/{self._name} since {spec['acquireTime']}"
        )
