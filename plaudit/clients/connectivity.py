"""Whether a channel has a connection now, or not even an address: errors say it, since gRPC's own don't."""

import re

import grpc
import grpc.aio


def is_ready(channel: grpc.Channel) -> bool:
    """Whether `channel` has a connection now.

    Sync channels tell it in public only to a callback, from a polling thread that dies noisily if the
    channel is closed meanwhile; what that thread asks is asked here directly.
    """
    while isinstance(inner := getattr(channel, "_channel", None), grpc.Channel):
        channel = inner  # interceptors, such as a tracer's, are channels around the real one
    try:
        state = channel._channel.check_connectivity_state(False)  # type: ignore[attr-defined]
    except ValueError:  # closed
        return False
    return bool(state == grpc.ChannelConnectivity.READY.value[0])


def is_ready_async(channel: grpc.aio.Channel) -> bool:
    """As is_ready."""
    return channel.get_state() is grpc.ChannelConnectivity.READY


def is_unresolved(error: grpc.RpcError) -> bool:
    """Whether a call failed because there was no address to the name; gRPC tells it in words only."""
    return error.code() is grpc.StatusCode.UNAVAILABLE and bool(
        re.match(r"errors resolving |DNS resolution failed", error.details() or "")
    )
