"""TrainerService: the run of this process, told over gRPC from a thread of its own."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from lm.errors import LmError
from plaudit.v1 import trainer_pb2, trainer_pb2_grpc
from services.rpc.background import serve_in_background
from services.rpc.interceptors import Readiness
from services.rpc.options import OptionError, ServerOptions, environment_file
from services.rpc.server import PortTaken, Service
from trainer.board import Board, Stage, Status
from trainer.config import RunOptions
from trainer.errors import ConfigError, Stopped, TrainerError
from trainer.ports import security
from trainer.stopping import StopSignal

FULL_NAME = "plaudit.v1.TrainerService"

STAGES = {
    None: trainer_pb2.STAGE_UNSPECIFIED,
    "sft": trainer_pb2.STAGE_SFT,
    "reward_model": trainer_pb2.STAGE_REWARD_MODEL,
    "ppo": trainer_pb2.STAGE_PPO,
}
STATES = {
    "starting": trainer_pb2.RUN_STATE_STARTING,
    "running": trainer_pb2.RUN_STATE_RUNNING,
    "finished": trainer_pb2.RUN_STATE_FINISHED,
    "stopped": trainer_pb2.RUN_STATE_STOPPED,
    "failed": trainer_pb2.RUN_STATE_FAILED,
}


ENDED = ("finished", "stopped", "failed")


class TrainerServicer(trainer_pb2_grpc.TrainerServiceServicer):
    """Reads the board, and passes on the wish to stop."""

    def __init__(self, board: Board, stop: StopSignal, readiness: Readiness) -> None:
        self._board = board
        self._stop = stop
        self._readiness = readiness

    async def GetRun(
        self,
        request: trainer_pb2.GetRunRequest,
        context: aio.ServicerContext[trainer_pb2.GetRunRequest, trainer_pb2.GetRunResponse],
    ) -> trainer_pb2.GetRunResponse:
        """The state of the run now."""
        return trainer_pb2.GetRunResponse(run=to_proto(self._board.status))

    async def WatchRun(
        self,
        request: trainer_pb2.WatchRunRequest,
        context: aio.ServicerContext[trainer_pb2.WatchRunRequest, trainer_pb2.WatchRunResponse],
    ) -> AsyncIterator[trainer_pb2.WatchRunResponse]:
        """Events since the caller's last, then each as it happens, until the run has ended."""
        number = request.after if request.run_id == self._board.status.run_id else 0
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        forget = self._board.watch(partial(_set, loop, changed))
        closing = asyncio.create_task(self._readiness.closing.wait())
        closing.add_done_callback(lambda _: changed.set())
        try:
            while True:
                changed.clear()
                # Looked at before the events, so that the last one isn't missed.
                is_over = closing.done() or self._board.status.state in ENDED
                for event in self._board.events(number):
                    number = event[0]
                    yield trainer_pb2.WatchRunResponse(number=number, run=to_proto(event[1]))
                if is_over:
                    return
                await changed.wait()
        finally:
            forget()
            closing.cancel()

    async def StopRun(
        self,
        request: trainer_pb2.StopRunRequest,
        context: aio.ServicerContext[trainer_pb2.StopRunRequest, trainer_pb2.StopRunResponse],
    ) -> trainer_pb2.StopRunResponse:
        """The run ends after the step under way, with a checkpoint."""
        self._stop.ask()
        return trainer_pb2.StopRunResponse(run=to_proto(self._board.status))


def _set(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    with suppress(RuntimeError):  # the loop has closed: nobody watches any more
        loop.call_soon_threadsafe(event.set)


def to_proto(status: Status) -> trainer_pb2.Run:
    """The status as the contract has it."""
    run = trainer_pb2.Run(
        run_id=status.run_id,
        stage=STAGES[status.stage],
        state=STATES[status.state],
        step=status.step,
        total_steps=status.total_steps,
        metrics=status.metrics,
        checkpoint=status.checkpoint,
        error=status.error,
    )
    run.started_at.CopyFrom(_timestamp(status.started_at.timestamp()))
    if status.last_step_at is not None:
        run.last_step_at.CopyFrom(_timestamp(status.last_step_at.timestamp()))
    return run


@contextmanager
def serve_run(board: Board, stage: Stage, options: RunOptions, stop: StopSignal) -> Iterator[None]:
    """Serves the board at `options.address`, if there is one, and tells how the block ended.

    `stop` hears of StopRun.

    Prints `listening on HOST:PORT`. Raises ConfigError for an address that can't be had.
    """
    board.tell(stage=stage)
    with ExitStack() as stack:
        if options.address is not None:
            stack.enter_context(_server(board, stop, options.address, options))
        try:
            yield
        except (Stopped, KeyboardInterrupt) as end:
            board.tell(state="stopped", error=str(end))
            raise
        except BaseException as error:
            board.tell(state="failed", error=_words(error))
            raise
        board.tell(state="finished")


def _words(error: BaseException) -> str:
    """Of an error that is none of ours the type alone: its words may quote prompts and responses."""
    kind = type(error).__name__
    return f"{kind}: {error}" if isinstance(error, TrainerError | LmError) else kind


@contextmanager
def _server(board: Board, stop: StopSignal, address: str, told: RunOptions) -> Iterator[None]:
    async def load() -> str:
        return ""

    def service() -> Service:
        readiness = Readiness()
        servicer = TrainerServicer(board, stop, readiness)
        return Service(
            name="trainer",
            full_names=(FULL_NAME,),
            register=lambda server: trainer_pb2_grpc.add_TrainerServiceServicer_to_server(servicer, server),
            load=load,
            readiness=readiness,
        )

    options = ServerOptions(
        address,
        insecure=told.insecure,
        token=os.environ.get("PLAUDIT_TOKEN"),
        token_file=environment_file("PLAUDIT_TOKEN_FILE"),
        security=security(told),
        health_address=told.health_address,
        reflection=told.reflection,
    )
    with ExitStack() as stack:
        try:
            server = stack.enter_context(serve_in_background(service, options))
        except (OptionError, PortTaken) as error:
            raise ConfigError.at("--address", str(error)) from None
        print(f"listening on {server.address}", flush=True)
        if server.health_address:
            print(f"health on {server.health_address}", flush=True)
        yield


def _timestamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(round(seconds * 1e9))
    return stamp
