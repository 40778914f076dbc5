"""`plaudit status`, on servers of every condition; the real services are in the contract tests."""

import json

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from toy_reward import ToyReward, serving

from plaudit.v1 import (
    policy_pb2,
    policy_pb2_grpc,
    reference_pb2,
    reference_pb2_grpc,
    trainer_pb2,
    trainer_pb2_grpc,
    types_pb2,
)

MODEL = types_pb2.ModelVersion(model_id="m", step=3, weights_sha256="0123456789" * 6 + "abcd")
QUEUE = types_pb2.QueueDepth(items=7, tokens=1234, bytes=99)


class AllOfThem(
    ToyReward,
    policy_pb2_grpc.PolicyServiceServicer,
    reference_pb2_grpc.ReferenceServiceServicer,
    trainer_pb2_grpc.TrainerServiceServicer,
):
    """Four services in one server."""

    def GetPolicy(self, request, context):
        return policy_pb2.GetPolicyResponse(model=MODEL, queue=QUEUE)

    def GetReference(self, request, context):
        return reference_pb2.GetReferenceResponse(model=MODEL, queue=QUEUE)

    def GetRun(self, request, context):
        run = trainer_pb2.Run(
            run_id="r", stage=trainer_pb2.STAGE_PPO, state=trainer_pb2.RUN_STATE_RUNNING,
            step=3, total_steps=9, started_at=Timestamp(seconds=1),
        )  # fmt: skip
        return trainer_pb2.GetRunResponse(run=run)


ADDERS = (
    policy_pb2_grpc.add_PolicyServiceServicer_to_server,
    reference_pb2_grpc.add_ReferenceServiceServicer_to_server,
    trainer_pb2_grpc.add_TrainerServiceServicer_to_server,
)
NAMES = [f"plaudit.v1.{name}Service" for name in ("Policy", "Reference", "Trainer", "Reward")]


def seen(run, *addresses):
    code, out, _ = run("status", *addresses, "--json")
    return code, json.loads(out)


def test_a_reward_service(run, toy):
    code, (sight,) = seen(run, toy.address)
    assert code == 0
    assert (sight["service"], sight["name"], sight["health"], sight["step"]) == (
        "reward",
        "toy",
        "serving",
        "0",
    )
    assert (sight["model"]["weights_sha256"], sight["queue"]) == (
        "ab" * 32,
        {"items": 0, "tokens": 0, "bytes": 0},
    )


def test_each_model_has_a_row(run):
    class Several(ToyReward):
        names = ("first", "second")

    with serving(Several()) as address:
        assert [sight["name"] for sight in seen(run, address)[1]] == ["first", "second"]


def test_several_services_in_one_server(run):
    with serving(AllOfThem(), add=ADDERS, serving_names=NAMES) as address:
        code, sights = seen(run, address)
    assert code == 0
    assert [sight["service"] for sight in sights] == ["policy", "reward", "reference", "trainer"]
    policy, _, reference, trainer = sights
    assert (policy["step"], policy["queue"]) == (reference["step"], reference["queue"])
    assert (policy["step"], policy["queue"]) == ("3", {"items": 7, "tokens": 1234, "bytes": 99})
    assert (trainer["name"], trainer["step"]) == ("r (ppo, running)", "3 of 9")


def test_nobody_there_is_a_row(run, toy, unused_address):
    code, (away, there) = seen(run, unused_address, toy.address)
    assert code == 69
    assert (away["address"], away["away"], away["service"]) == (unused_address, True, "")
    assert "not reachable" in away["error"]
    assert (there["address"], there["away"]) == (toy.address, False)


def test_a_service_that_loads_is_away(run):
    with serving(ToyReward(), ready=False) as address:
        code, (sight,) = seen(run, address)
    assert (code, sight["service"], sight["health"]) == (69, "reward", "not serving")
    assert "loading" in sight["error"]


def test_a_server_without_health_is_found_by_its_methods(run):
    with serving(ToyReward(), with_health=False) as address:
        code, (sight,) = seen(run, address)
    assert (code, sight["service"], sight["health"], sight["name"]) == (0, "reward", None, "toy")


def test_a_server_with_nothing_of_ours(run):
    with serving(None, serving_names=[]) as address:
        code, (sight,) = seen(run, address)
    assert (code, sight["error"]) == (70, "a server, but none of Plaudit's services")


def test_what_a_service_refuses_is_told(run):
    class Closed(ToyReward):
        def ListModels(self, request, context):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")

    with serving(Closed()) as address:
        code, (sight,) = seen(run, address)
    assert (code, sight["health"], sight["error"], sight["away"]) == (70, "serving", "no token", False)


def test_for_people(run, toy, unused_address):
    code, out, _ = run("status", toy.address, unused_address)
    assert code == 69
    for words in (
        "reward",
        toy.address,
        "toy: toy",
        "abababab",
        "serving",
        "0/0",
        unused_address,
        "no answer",
    ):
        assert words in out


@pytest.mark.parametrize("arguments", [[], ["host"], ["host:1", "--timeout", "0"]])
def test_bad_arguments(run, arguments):
    code, out, err = run("status", *arguments)
    assert (code, out, bool(err)) == (64, "", True)
