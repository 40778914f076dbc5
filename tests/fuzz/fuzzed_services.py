"""Every method of every service of ours by its path, and the calls that show that a server still works."""

import contextlib
import io

import grpc
from good_requests import PROBES
from google.protobuf import message_factory
from measured_memory import bounded_memory

from plaudit.v1 import policy_pb2, reference_pb2, reward_pb2, trainer_pb2, weights_pb2
from services.batching import CallLimits
from services.oip import open_inference_pb2 as oip
from services.policy.service import policy_service
from services.reference.service import reference_service
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions
from trainer.board import Board
from trainer.config import RunOptions
from trainer.servicer import serve_run
from trainer.stopping import StopSignal

LIMITS = CallLimits(max_items=16, max_tokens=2048)
"""Small, so that what is within them is fast and what is beyond them is short."""
DEADLINE_S = 20.0
"""A call that isn't answered by then hangs."""
DOCUMENTED = frozenset(
    {
        "OK",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "FAILED_PRECONDITION",
        "RESOURCE_EXHAUSTED",
        "DATA_LOSS",
        "ABORTED",
    }
)
"""How docs/architecture.md says that a request can end, however wrong it is."""

_SERVICES = {
    "reward": reward_pb2.DESCRIPTOR.services_by_name["RewardService"],
    "oip": oip.DESCRIPTOR.services_by_name["GRPCInferenceService"],
    "policy": policy_pb2.DESCRIPTOR.services_by_name["PolicyService"],
    "weights": weights_pb2.DESCRIPTOR.services_by_name["WeightsService"],
    "reference": reference_pb2.DESCRIPTOR.services_by_name["ReferenceService"],
    "trainer": trainer_pb2.DESCRIPTOR.services_by_name["TrainerService"],
}
_SERVERS = {"oip": "reward", "weights": "policy"}
METHODS = {
    f"{method.containing_service.full_name}/{method.name}": (_SERVERS.get(name, name), method)
    for name, service in _SERVICES.items()
    for method in service.methods
}
"""(server, descriptor) by path."""


def request_class(path):
    """The message that a method takes."""
    return message_factory.GetMessageClass(METHODS[path][1].input_type)


class Services:
    """All servers on tiny models."""

    def __init__(self, addresses, stack):
        self.addresses = addresses
        self._channels = {
            name: stack.enter_context(grpc.insecure_channel(address)) for name, address in addresses.items()
        }

    def end(self, path, *bodies):
        """Status and message that a call with these bodies ends with; of a watch, after one answer."""
        server, method = METHODS[path]
        kind = "_".join(
            "stream" if way else "unary" for way in (method.client_streaming, method.server_streaming)
        )
        call = getattr(self._channels[server], kind)(f"/{path}")
        request = iter(bodies) if method.client_streaming else bodies[0]
        try:
            response = call(request, timeout=DEADLINE_S)
            if method.client_streaming and method.server_streaming:
                list(response)
            elif method.server_streaming:  # what is watched may never end
                next(response, None)
                response.cancel()
        except grpc.RpcError as error:
            return error.code().name, error.details()
        return "OK", ""

    def check(self, path, *bodies):
        """Fails unless the call ends as documented, for little memory, and the next good one is answered."""
        with bounded_memory(sum(map(len, bodies))):
            code, message = self.end(path, *bodies)
        assert code in DOCUMENTED, f"{code}: {message}"
        server, _ = METHODS[path]
        good_path, good = PROBES[server]
        assert self.end(good_path, good.SerializeToString()) == ("OK", "")


@contextlib.contextmanager
def all_services(policy, reward):
    """A server for each model folder, the policy's as reference, too, and one of a run that has ended."""
    with contextlib.ExitStack() as stack:

        def serve(make, folder):
            options = ModelOptions(str(folder), dtype="float32", threads=1)
            return stack.enter_context(serve_in_background(lambda: make(options, LIMITS))).address

        addresses = {
            "reward": serve(reward_service, reward),
            "policy": serve(policy_service, policy),
            "reference": serve(reference_service, policy),
            "trainer": stack.enter_context(_ended_run()),
        }
        yield Services(addresses, stack)


@contextlib.contextmanager
def _ended_run():
    """The address of a trainer whose run is over, so that watching it ends."""
    board, printed = Board("run"), io.StringIO()
    with contextlib.ExitStack() as stack:
        with contextlib.redirect_stdout(printed):
            options = RunOptions(address="127.0.0.1:0")
            stack.enter_context(serve_run(board, "ppo", options, StopSignal()))
        board.tell(state="finished")
        yield printed.getvalue().split("listening on ")[1].strip()
