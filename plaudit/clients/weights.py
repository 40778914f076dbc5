"""Clients that give a policy new weights.

Always one replica's own address: weights never go through a load balancer. With several replicas, stage
on all of them, then commit on all.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from plaudit.clients import from_proto, to_proto
from plaudit.clients.calls import AsyncClient, Client
from plaudit.clients.channel import Method
from plaudit.clients.data import ModelVersion, PushManifest, PushStatus, SwapMode
from plaudit.clients.errors import PlauditError
from plaudit.clients.following import PAUSE_SECONDS, WATCH_SECONDS, Watching
from plaudit.clients.upload import Pieces, Upload, check_pieces
from plaudit.v1.weights_pb2 import (
    AbortPushRequest,
    AbortPushResponse,
    BeginPushRequest,
    BeginPushResponse,
    CommitPushRequest,
    CommitPushResponse,
    GetPushRequest,
    GetPushResponse,
    LoadFromUriRequest,
    LoadFromUriResponse,
    PushChunksRequest,
    PushChunksResponse,
    WatchPolicyVersionRequest,
    WatchPolicyVersionResponse,
)

SERVICE = "plaudit.v1.WeightsService"
BEGIN_PUSH: Method[BeginPushRequest, BeginPushResponse] = Method(SERVICE, "BeginPush", BeginPushResponse)
PUSH_CHUNKS: Method[PushChunksRequest, PushChunksResponse] = Method(SERVICE, "PushChunks", PushChunksResponse)
GET_PUSH: Method[GetPushRequest, GetPushResponse] = Method(SERVICE, "GetPush", GetPushResponse)
COMMIT_PUSH: Method[CommitPushRequest, CommitPushResponse] = Method(SERVICE, "CommitPush", CommitPushResponse)
ABORT_PUSH: Method[AbortPushRequest, AbortPushResponse] = Method(SERVICE, "AbortPush", AbortPushResponse)

LOAD: Method[LoadFromUriRequest, LoadFromUriResponse] = Method(SERVICE, "LoadFromUri", LoadFromUriResponse)
WATCH: Method[WatchPolicyVersionRequest, WatchPolicyVersionResponse] = Method(
    SERVICE, "WatchPolicyVersion", WatchPolicyVersionResponse
)

ABORT_TIMEOUT = 10.0
"""Seconds that giving up a push that has failed may take."""


class WeightsClient(Client):
    """Replaces weights of one policy server, all or nothing.

    >>> from plaudit import PolicyClient, PushManifest, TensorSpec, WeightsClient
    >>> with PolicyClient("127.0.0.1:50051") as policy:
    ...     loaded = policy.get_policy().model
    >>> manifest = PushManifest(
    ...     run_id="example",
    ...     base_step=loaded.step,
    ...     new_step=loaded.step + 1,
    ...     tensors=[TensorSpec("model.norm.weight", "float32", (32,))],
    ...     weights_sha256="0" * 64,
    ... )
    >>> with WeightsClient("127.0.0.1:50051") as weights:
    ...     push_id = weights.stage(manifest, [bytes(32 * 4)])
    ...     weights.abort(push_id) == loaded
    True
    """

    _service = "weights"
    _one_address = True

    def push(
        self,
        manifest: PushManifest,
        pieces: Pieces,
        *,
        mode: SwapMode = "in_place",
        take_over: bool = False,
        timeout: float | None = None,
    ) -> ModelVersion:
        """Stages and commits; returns what is loaded then. `timeout` holds for each of both."""
        push_id = self.stage(manifest, pieces, take_over=take_over, timeout=timeout)
        return self.commit(push_id, mode=mode, timeout=timeout)

    def stage(
        self, manifest: PushManifest, pieces: Pieces, *, take_over: bool = False, timeout: float | None = None
    ) -> str:
        """Sends the tensors without loading them; returns the push id for commit or abort.

        Where the connection breaks it goes on with what the server doesn't have, within `timeout`. One
        run drives a policy: of another, only `take_over` is let in, which ends what the first has open.

        On any other failure the push is given up, and the error raised: FailedPrecondition (the manifest
        doesn't fit the model, or another run drives), Aborted (another push is being committed),
        InvalidArgument (`pieces` is a generator), or what `pieces` raised.
        """
        check_pieces(pieces)
        opened = self._call(BEGIN_PUSH, to_proto.begin_push_request(manifest, take_over), timeout)
        with self._aborting(opened.push_id):
            self._upload(Upload(opened, pieces, self.seconds(timeout)))
        return opened.push_id

    def _upload(self, upload: Upload) -> None:
        while not upload.done:
            try:
                if upload.broken:
                    upload.go_on_at(self._call(GET_PUSH, upload.where, upload.left))
                else:
                    self._send(PUSH_CHUNKS, upload.chunks(), upload.left)
                    upload.done = True
            except PlauditError as failure:
                if self._closed.wait(upload.bear(failure)):
                    raise

    def get_push(
        self, push_id: str = "", *, run_id: str = "", new_step: int = 0, timeout: float | None = None
    ) -> PushStatus:
        """How far a push is, by its id, or by the run and step of its manifest.

        Raises NotFound: the server remembers the last few that have ended, until it ends itself.
        """
        request = to_proto.get_push_request(push_id, run_id, new_step)
        return from_proto.push_status(self._call(GET_PUSH, request, timeout))

    def commit(
        self, push_id: str, *, mode: SwapMode = "in_place", timeout: float | None = None
    ) -> ModelVersion:
        """Loads what was staged, between two decode steps or ("drain") after the responses in flight.

        May be called again, and tells the same outcome. Raises DataLoss if the digest doesn't match;
        the old weights then serve on and the push is over. After Unreachable or DeadlineExceeded only
        get_policy can tell which weights serve.
        """
        request = to_proto.commit_request(push_id, mode)
        with self._aborting(push_id):
            return from_proto.model_version(self._call(COMMIT_PUSH, request, timeout).model)

    def abort(self, push_id: str, *, timeout: float | None = None) -> ModelVersion:
        """Gives a staged push up; returns what is loaded, unchanged.

        Raises FailedPrecondition if it is committed, NotFound if the server doesn't know it any more.
        """
        response = self._call(ABORT_PUSH, AbortPushRequest(push_id=push_id), timeout)
        return from_proto.model_version(response.model)

    def load_from_uri(
        self,
        uri: str,
        manifest: PushManifest,
        *,
        mode: SwapMode = "in_place",
        take_over: bool = False,
        timeout: float | None = None,
    ) -> ModelVersion:
        """A push of tensors that the server reads itself; returns what is loaded then.

        `uri` is file:///… of a .safetensors file, or of a folder of them, on a volume that both sides
        share, below a --weights-root of the server. Raises FailedPrecondition (the server has none, or
        the files don't fit the manifest), InvalidArgument (a place it may not read), NotFound, DataLoss.
        """
        request = to_proto.load_request(uri, manifest, mode, take_over)
        return from_proto.model_version(self._call(LOAD, request, timeout).model)

    def watch_version(self, *, patience: float = 60.0) -> Iterator[ModelVersion]:
        """What is loaded, then what is loaded after each change; who iterates slowly gets the newest.

        Ends when the client is closed. A server that goes away is waited for `patience` seconds. Raises
        a PlauditError.
        """
        watching = Watching(patience)
        while True:
            try:
                for response in self._receive(WATCH, WatchPolicyVersionRequest(), WATCH_SECONDS):
                    if watching.is_news(model := from_proto.model_version(response.model)):
                        yield model
            except PlauditError as failure:
                watching.patience.bear(failure)
            if self._closed.wait(PAUSE_SECONDS):
                return

    @contextmanager
    def _aborting(self, push_id: str) -> Iterator[None]:
        try:
            yield
        except BaseException:
            with suppress(PlauditError):  # the first error is the one to tell
                self.abort(push_id, timeout=ABORT_TIMEOUT)
            raise


class AsyncWeightsClient(AsyncClient):
    """WeightsClient to be awaited."""

    _service = "weights"
    _one_address = True

    async def push(
        self,
        manifest: PushManifest,
        pieces: Pieces,
        *,
        mode: SwapMode = "in_place",
        take_over: bool = False,
        timeout: float | None = None,
    ) -> ModelVersion:
        """As WeightsClient.push."""
        push_id = await self.stage(manifest, pieces, take_over=take_over, timeout=timeout)
        return await self.commit(push_id, mode=mode, timeout=timeout)

    async def stage(
        self, manifest: PushManifest, pieces: Pieces, *, take_over: bool = False, timeout: float | None = None
    ) -> str:
        """As WeightsClient.stage; `pieces` are taken in a thread."""
        check_pieces(pieces)
        opened = await self._call(BEGIN_PUSH, to_proto.begin_push_request(manifest, take_over), timeout)
        async with self._aborting(opened.push_id):
            await self._upload(Upload(opened, pieces, self.seconds(timeout)))
        return opened.push_id

    async def _upload(self, upload: Upload) -> None:
        while not upload.done:
            try:
                if upload.broken:
                    upload.go_on_at(await self._call(GET_PUSH, upload.where, upload.left))
                else:
                    await self._send(PUSH_CHUNKS, upload.chunks(), upload.left)
                    upload.done = True
            except PlauditError as failure:
                if await self._closes_within(upload.bear(failure)):
                    raise

    async def get_push(
        self, push_id: str = "", *, run_id: str = "", new_step: int = 0, timeout: float | None = None
    ) -> PushStatus:
        """As WeightsClient.get_push."""
        request = to_proto.get_push_request(push_id, run_id, new_step)
        return from_proto.push_status(await self._call(GET_PUSH, request, timeout))

    async def commit(
        self, push_id: str, *, mode: SwapMode = "in_place", timeout: float | None = None
    ) -> ModelVersion:
        """As WeightsClient.commit."""
        request = to_proto.commit_request(push_id, mode)
        async with self._aborting(push_id):
            response = await self._call(COMMIT_PUSH, request, timeout)
        return from_proto.model_version(response.model)

    async def abort(self, push_id: str, *, timeout: float | None = None) -> ModelVersion:
        """As WeightsClient.abort."""
        response = await self._call(ABORT_PUSH, AbortPushRequest(push_id=push_id), timeout)
        return from_proto.model_version(response.model)

    async def load_from_uri(
        self,
        uri: str,
        manifest: PushManifest,
        *,
        mode: SwapMode = "in_place",
        take_over: bool = False,
        timeout: float | None = None,
    ) -> ModelVersion:
        """As WeightsClient.load_from_uri."""
        request = to_proto.load_request(uri, manifest, mode, take_over)
        return from_proto.model_version((await self._call(LOAD, request, timeout)).model)

    async def watch_version(self, *, patience: float = 60.0) -> AsyncIterator[ModelVersion]:
        """As WeightsClient.watch_version."""
        watching = Watching(patience)
        while True:
            try:
                async for response in self._receive(WATCH, WatchPolicyVersionRequest(), WATCH_SECONDS):
                    if watching.is_news(model := from_proto.model_version(response.model)):
                        yield model
            except PlauditError as failure:
                watching.patience.bear(failure)
            if await self._closes_within(PAUSE_SECONDS):
                return

    @asynccontextmanager
    async def _aborting(self, push_id: str) -> AsyncIterator[None]:
        try:
            yield
        except BaseException:
            with suppress(PlauditError):
                await self.abort(push_id, timeout=ABORT_TIMEOUT)
            raise
