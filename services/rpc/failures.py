"""Which peers failed to show who they are too often of late."""

import functools
import time
from collections import OrderedDict
from ipaddress import IPv6Address
from urllib.parse import unquote

from services.rpc.quotas import Bucket, Clock

BURST = 100
"""Failures that a peer may have at once: a whole team behind one address that hasn't heard of a new token."""
PER_SECOND = 5.0
"""And then so many a second."""
MOST_PEERS = 4096
"""Peers that are remembered; the one that failed longest ago is forgotten first."""


@functools.lru_cache(MOST_PEERS)
def network(peer: str) -> str:
    """Whose failures count as one: an IPv6 address's /64, all of which one caller may have, else the peer.

    `peer` is an address, or gRPC's words for one without the port: "ipv6:%5B2001:db8::1%5D".
    """
    try:
        address = IPv6Address(unquote(peer).removeprefix("ipv6:").strip("[]"))
    except ValueError:
        return peer
    return peer if address.ipv4_mapped else f"{IPv6Address(int(address) >> 64 << 64)}/64"


class Failures:
    """Counts failures by peer (see `network`), in bounded memory."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._peers: OrderedDict[str, Bucket] = OrderedDict()

    def wait(self, peer: str) -> float:
        """Seconds until the peer is listened to again; 0 for now."""
        bucket = self._peers.get(network(peer))
        return 0.0 if bucket is None else bucket.wait(1)

    def count(self, peer: str) -> None:
        """The peer has failed."""
        peer = network(peer)
        if peer not in self._peers:
            self._peers[peer] = Bucket(PER_SECOND, self._clock, BURST)
        self._peers.move_to_end(peer)
        if not self._peers[peer].wait(1):
            self._peers[peer].take(1)
        if len(self._peers) > MOST_PEERS:
            self._peers.popitem(last=False)
