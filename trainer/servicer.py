"""TrainerService: the run of this process, told over gRPC from a thread of its own."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from google.protobuf.timestamp_pb2 import Timestamp
from grpc import aio

from plaudit.v1 import trainer_pb2, trainer_pb2_grpc
from services.rpc.background import serve_in_background
from services.rpc.options import OptionError, ServerOptions
from services.rpc.server import PortTaken, Service
from trainer.board import Board, Stage, Status
from trainer.config import RunOptions
from trainer.errors import ConfigError, Stopped

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


class TrainerServicer(trainer_pb2_grpc.TrainerServiceServicer):
    """Reads the board."""

    def __init__(self, board: Board) -> None:
        self._board = board

    async def GetRun(
        self,
        request: trainer_pb2.GetRunRequest,
        context: aio.ServicerContext[trainer_pb2.GetRunRequest, trainer_pb2.GetRunResponse],
    ) -> trainer_pb2.GetRunResponse:
        """The state of the run now."""
        return trainer_pb2.GetRunResponse(run=to_proto(self._board.status))


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
def serve_run(board: Board, stage: Stage, options: RunOptions) -> Iterator[None]:
    """Serves the board at `options.address`, if there is one, and tells how the block ended.

    Prints `listening on HOST:PORT`. Raises ConfigError for an address that can't be had.
    """
    board.tell(stage=stage)
    with ExitStack() as stack:
        if options.address is not None:
            stack.enter_context(_server(board, options.address, options.insecure))
        try:
            yield
        except (Stopped, KeyboardInterrupt) as end:
            board.tell(state="stopped", error=str(end))
            raise
        except BaseException as error:
            board.tell(state="failed", error=f"{type(error).__name__}: {error}")
            raise
        board.tell(state="finished")


@contextmanager
def _server(board: Board, address: str, insecure: bool) -> Iterator[None]:
    async def load() -> str:
        return ""

    def service() -> Service:
        servicer = TrainerServicer(board)
        return Service(
            name="trainer",
            full_names=(FULL_NAME,),
            register=lambda server: trainer_pb2_grpc.add_TrainerServiceServicer_to_server(servicer, server),
            load=load,
        )

    options = ServerOptions(address, insecure=insecure, token=os.environ.get("PLAUDIT_TOKEN"))
    with ExitStack() as stack:
        try:
            server = stack.enter_context(serve_in_background(service, options))
        except (OptionError, PortTaken) as error:
            raise ConfigError.at("--address", str(error)) from None
        print(f"listening on {server.address}", flush=True)
        yield


def _timestamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(round(seconds * 1e9))
    return stamp
