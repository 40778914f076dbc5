"""Making calls, blocking and awaited: all that differs between the sync clients and the async ones."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from operator import methodcaller
from typing import Self

import grpc
import grpc.aio

from plaudit.clients.channel import Connection, Method, RequestT, ResponseT, check_size
from plaudit.clients.connectivity import is_ready, is_ready_async, is_unresolved
from plaudit.clients.hedging import first_answer, first_answer_async
from plaudit.clients.opened_stream import OpenedStream
from plaudit.clients.tls import Channels, Line
from plaudit.clients.tries import Attempt, Tries

_to_bytes = methodcaller("SerializeToString")


class Client(Connection):
    """Base of the sync clients: a context manager, safe to use from many threads."""

    def _prepare(self) -> None:
        self._slots = threading.Semaphore(self.max_in_flight)
        self._closed: threading.Event = threading.Event()

        self._opened = Channels(self._tls, self._lines(), self._open, lambda channel: channel.close())

    @property
    def _channels(self) -> list[grpc.Channel]:
        return self._opened.now()

    def _open(self, line: Line, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
        target, options = line
        if credentials is None:
            return grpc.insecure_channel(target, options)
        return grpc.secure_channel(target, credentials, options)

    def _call(
        self, method: Method[RequestT, ResponseT], request: RequestT, timeout: float | None
    ) -> ResponseT:
        check_size(request)
        tries = self.tries(method, timeout)
        with self._slot(tries):
            for attempt in tries:
                try:
                    return self._ask(method, request, attempt, tries)
                except grpc.RpcError as error:
                    channel = self._channels[attempt.channel_index]
                    failure = tries.failure(attempt, error, partial(is_ready, channel))
                    if is_unresolved(error):
                        self._opened.renew(channel)
                    pause = tries.pause_after(failure)
                    if pause is None or self._closed.wait(pause):
                        raise failure from error
        raise AssertionError("tries have no end of their own")

    def _ask(
        self, method: Method[RequestT, ResponseT], request: RequestT, attempt: Attempt, tries: Tries
    ) -> ResponseT:
        def to(which: Attempt) -> "grpc.UnaryUnaryMultiCallable[RequestT, ResponseT]":
            channel = self._channels[which.channel_index + which.is_spare]
            return channel.unary_unary(method.path, _to_bytes, method.response.FromString)

        def begin(which: Attempt) -> "grpc.Future[ResponseT]":
            return to(which).future(request, **which.arguments(tries.left))

        if self._hedge_after is None or not method.idempotent:
            response = to(attempt)(request, **attempt.arguments(tries.left))
        else:
            rivals = attempt, tries.rival_of(attempt)
            response, attempt = first_answer(begin, rivals, self._hedge_after, self._hedges)
        tries.answered(attempt)
        return response

    def _send(
        self, method: Method[RequestT, ResponseT], requests: Iterable[RequestT], timeout: float | None
    ) -> ResponseT:
        """One stream, never sent twice. An exception of `requests` comes out as it is."""
        tries = self.tries(method, timeout)
        channel = self._channels[tries.first.channel_index]
        call = channel.stream_unary(method.path, _to_bytes, method.response.FromString)
        stopped_by: list[Exception] = []
        try:
            response = call(_until_error(requests, stopped_by), **tries.first.arguments(tries.left))
        except grpc.RpcError as error:
            if not stopped_by:
                raise tries.failure(tries.first, error, partial(is_ready, channel)) from error
        if stopped_by:
            raise stopped_by[0]
        return response

    def _receive(
        self, method: Method[RequestT, ResponseT], request: RequestT, timeout: float
    ) -> Iterator[ResponseT]:
        """The responses of one stream, which ends after `timeout` at the latest."""
        tries = self.tries(method, timeout)
        channel = self._channels[tries.first.channel_index]
        call = channel.unary_stream(method.path, _to_bytes, method.response.FromString)
        responses = call(request, **tries.first.arguments(tries.left))
        try:
            yield from responses
        except grpc.RpcError as error:
            raise tries.failure(tries.first, error, partial(is_ready, channel)) from error
        finally:
            # Where a tracer intercepts calls, the stream is a plain generator.
            getattr(responses, "cancel" if hasattr(responses, "cancel") else "close")()

    def _open_stream(
        self, method: Method[RequestT, ResponseT], requests: Iterator[RequestT], timeout: float
    ) -> OpenedStream[ResponseT]:
        """One stream to the address whose turn it is, which ends after `timeout` at the latest."""
        shown, tries = self._token.now(), self.tries(method, timeout)
        channel = self._channels[tries.first.channel_index]
        call = channel.stream_stream(method.path, _to_bytes, method.response.FromString)
        responses = call(requests, **tries.first.arguments(tries.left))
        where, note = tries.first.where, partial(tries.note, tries.first)
        return OpenedStream(
            responses,
            responses.cancel,
            where,
            partial(is_ready, channel),
            note,
            partial(self._token.differs_from, shown),
            self._replicas.budget,
        )

    @contextmanager
    def _slot(self, tries: Tries) -> Iterator[None]:
        """A turn to call, kept while the call waits to be made again: it spares a full service."""
        if not self._slots.acquire(timeout=tries.left):
            raise self._no_turn(tries)
        try:
            yield
        finally:
            self._slots.release()

    def close(self) -> None:
        """Ends the connections; calls in flight are cancelled, and later ones raise FailedPrecondition."""
        self._closed.set()
        for channel in self._opened.every():
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(Connection):
    """Base of the async clients: an async context manager, to be used in one event loop."""

    def _prepare(self) -> None:
        self._slots = asyncio.Semaphore(self.max_in_flight)
        self._closed: asyncio.Event = asyncio.Event()
        self._streaming = self._blocking()
        # Opened by the first call: a channel belongs to a loop.
        self._opened = Channels(
            self._tls, self._lines(), self._open, lambda channel: asyncio.ensure_future(channel.close())
        )

    @property
    def _channels(self) -> list[grpc.aio.Channel]:
        return self._opened.now()

    def _open(self, line: Line, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
        target, options = line
        if credentials is None:
            return grpc.aio.insecure_channel(target, options)
        return grpc.aio.secure_channel(target, credentials, options)

    async def _call(
        self, method: Method[RequestT, ResponseT], request: RequestT, timeout: float | None
    ) -> ResponseT:
        check_size(request)
        tries = self.tries(method, timeout)
        async with self._slot(tries):
            for attempt in tries:
                try:
                    return await self._ask(method, request, attempt, tries)
                except grpc.RpcError as error:
                    channel = self._channels[attempt.channel_index]
                    failure = tries.failure(attempt, error, partial(is_ready_async, channel))
                    if is_unresolved(error):
                        self._opened.renew(channel)
                    pause = tries.pause_after(failure)
                    if pause is None or await self._closes_within(pause):
                        raise failure from error
        raise AssertionError("tries have no end of their own")

    async def _ask(
        self, method: Method[RequestT, ResponseT], request: RequestT, attempt: Attempt, tries: Tries
    ) -> ResponseT:
        def begin(which: Attempt) -> "grpc.aio.UnaryUnaryCall[RequestT, ResponseT]":
            channel = self._channels[which.channel_index + which.is_spare]
            call = channel.unary_unary(method.path, _to_bytes, method.response.FromString)
            return call(request, **which.arguments(tries.left))

        if self._hedge_after is None or not method.idempotent:
            response = await begin(attempt)
        else:
            rivals = attempt, tries.rival_of(attempt)
            response, attempt = await first_answer_async(begin, rivals, self._hedge_after, self._hedges)
        tries.answered(attempt)
        return response

    async def _receive(
        self, method: Method[RequestT, ResponseT], request: RequestT, timeout: float
    ) -> AsyncIterator[ResponseT]:
        """As Client._receive."""
        tries = self.tries(method, timeout)
        channel = self._channels[tries.first.channel_index]
        call = channel.unary_stream(method.path, _to_bytes, method.response.FromString)
        responses = call(request, **tries.first.arguments(tries.left))
        try:
            async for response in responses:
                yield response
        except grpc.RpcError as error:
            raise tries.failure(tries.first, error, partial(is_ready_async, channel)) from error
        finally:
            responses.cancel()

    async def _send(
        self, method: Method[RequestT, ResponseT], requests: Iterable[RequestT], timeout: float | None
    ) -> ResponseT:
        """As Client._send, which does it in a thread; cancelling ends the stream.

        A stream of grpc.aio that the server refuses while a message is being written can end as an
        internal error, without the server's words. Here `requests` also stay off the event loop.
        """
        with self._blocking() as blocking:
            return await asyncio.to_thread(blocking._send, method, requests, timeout)

    def _blocking(self) -> Client:
        """A client with these settings and connections of its own, for what threads do better."""
        client = Client(
            self.addresses,
            token="",
            timeout=self._timeout,
            wait_for_ready=self._wait_for_ready,
            caller=self._caller or None,
            tls_ca=self._tls.ca if self._tls else None,
            tls_cert=self._tls.cert if self._tls else None,
            tls_key=self._tls.key if self._tls else None,
            tls_name=self._tls_name,
            insecure=self._insecure,
        )
        client._service, client._token, client._replicas = self._service, self._token, self._replicas
        return client

    @asynccontextmanager
    async def _slot(self, tries: Tries) -> AsyncIterator[None]:
        """As Client._slot."""
        try:
            async with asyncio.timeout(tries.left):
                await self._slots.acquire()
        except TimeoutError:
            raise self._no_turn(tries) from None
        try:
            yield
        finally:
            self._slots.release()

    async def _closes_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        return self._closed.is_set()

    async def close(self) -> None:
        """Ends the connections; calls in flight are cancelled, and later ones raise FailedPrecondition."""
        self._closed.set()
        self._streaming.close()
        for channel in self._opened.every():
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _until_error(requests: Iterable[RequestT], stopped_by: list[Exception]) -> Iterator[RequestT]:
    """`requests` until one fails; gRPC iterates in a thread of its own and would swallow the exception."""
    try:
        yield from requests
    except Exception as error:
        stopped_by.append(error)
