"""Making calls, blocking and awaited: all that differs between the sync clients and the async ones."""

import asyncio
from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from operator import methodcaller
from typing import Self

import grpc
import grpc.aio

from plaudit.clients.channel import (
    Connection,
    Method,
    RequestT,
    ResponseT,
    channel_options,
    check_size,
)

_to_bytes = methodcaller("SerializeToString")


class Client(Connection):
    """Base of the sync clients: a context manager, safe to use from many threads."""

    @cached_property
    def _channels(self) -> list[grpc.Channel]:
        return [grpc.insecure_channel(target, options=channel_options(target)) for target in self.targets]

    def _call(
        self, method: Method[RequestT, ResponseT], request: RequestT, timeout: float | None
    ) -> ResponseT:
        check_size(request)
        for attempt in self.attempts(method, timeout):
            channel = self._channels[attempt.channel_index]
            call = channel.unary_unary(method.path, _to_bytes, method.response.FromString)
            try:
                return call(request, **attempt.arguments())
            except grpc.RpcError as error:
                failure = attempt.failure(error, partial(_is_ready, channel))
                if not attempt.goes_on(failure):
                    raise failure from error
        raise AssertionError("the last attempt returns or raises")

    def _send(
        self, method: Method[RequestT, ResponseT], requests: Iterable[RequestT], timeout: float | None
    ) -> ResponseT:
        """One stream, never sent twice. An exception of `requests` comes out as it is."""
        attempt = next(self.attempts(method, timeout))
        channel = self._channels[attempt.channel_index]
        call = channel.stream_unary(method.path, _to_bytes, method.response.FromString)
        stopped_by: list[Exception] = []
        try:
            response = call(_until_error(requests, stopped_by), **attempt.arguments())
        except grpc.RpcError as error:
            if not stopped_by:
                raise attempt.failure(error, partial(_is_ready, channel)) from error
        if stopped_by:
            raise stopped_by[0]
        return response

    def close(self) -> None:
        """Ends the connections; calls in flight are cancelled."""
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(Connection):
    """Base of the async clients: an async context manager, to be used in one event loop."""

    @cached_property
    def _channels(self) -> list[grpc.aio.Channel]:  # made by the first call: a channel belongs to a loop
        return [grpc.aio.insecure_channel(target, options=channel_options(target)) for target in self.targets]

    async def _call(
        self, method: Method[RequestT, ResponseT], request: RequestT, timeout: float | None
    ) -> ResponseT:
        check_size(request)
        for attempt in self.attempts(method, timeout):
            channel = self._channels[attempt.channel_index]
            call = channel.unary_unary(method.path, _to_bytes, method.response.FromString)
            try:
                return await call(request, **attempt.arguments())
            except grpc.RpcError as error:
                failure = attempt.failure(error, partial(_is_ready_async, channel))
                if not attempt.goes_on(failure):
                    raise failure from error
        raise AssertionError("the last attempt returns or raises")

    async def _send(
        self, method: Method[RequestT, ResponseT], requests: Iterable[RequestT], timeout: float | None
    ) -> ResponseT:
        """As Client._send, which does it in a thread; cancelling ends the stream.

        A stream of grpc.aio that the server refuses while a message is being written can end as an
        internal error, without the server's words. Here `requests` also stay off the event loop.
        """
        blocking = Client(
            self.addresses,
            token=self._token,
            timeout=self._timeout,
            wait_for_ready=self._wait_for_ready,
        )
        blocking._service = self._service
        try:
            return await asyncio.to_thread(blocking._send, method, requests, timeout)
        finally:
            blocking.close()

    async def close(self) -> None:
        """Ends the connections; calls in flight are cancelled."""
        for channel in self._channels:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _is_ready(channel: grpc.Channel) -> bool:
    """Whether `channel` has a connection now.

    Sync channels tell it in public only to a callback, from a polling thread that dies noisily if the
    channel is closed meanwhile; what that thread asks is asked here directly.
    """
    try:
        state = channel._channel.check_connectivity_state(False)  # type: ignore[attr-defined]
    except ValueError:  # closed
        return False
    return bool(state == grpc.ChannelConnectivity.READY.value[0])


def _is_ready_async(channel: grpc.aio.Channel) -> bool:
    return channel.get_state() is grpc.ChannelConnectivity.READY


def _until_error(requests: Iterable[RequestT], stopped_by: list[Exception]) -> Iterator[RequestT]:
    """`requests` until one fails; gRPC iterates in a thread of its own and would swallow the exception."""
    try:
        yield from requests
    except Exception as error:
        stopped_by.append(error)
