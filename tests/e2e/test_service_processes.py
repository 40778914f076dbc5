"""Services as real processes: started, asked, stopped, killed; nothing is left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from certificates import Pems

from plaudit.v1 import reference_pb2, reference_pb2_grpc, reward_pb2, reward_pb2_grpc, types_pb2
from services.local import LocalService, ServiceFailed, ServiceProcess, check_tls, local_services

THREADS = ("--threads", "1", "--dtype", "float32")


def score(address, metadata=()):
    item = reward_pb2.ScoreItem(pair=types_pb2.TextPair(prompt="the film is", response=" good"))
    with grpc.insecure_channel(address) as channel:
        stub = reward_pb2_grpc.RewardServiceStub(channel)
        return stub.Score(reward_pb2.ScoreRequest(items=[item]), timeout=30, metadata=metadata)


def logprobs(address, credentials):
    sequence = reference_pb2.LogprobSequence(token_ids=[5, 6, 7], start=1)
    with grpc.secure_channel(address, credentials) as channel:
        stub = reference_pb2_grpc.ReferenceServiceStub(channel)
        return stub.ComputeLogprobs(reference_pb2.ComputeLogprobsRequest(sequences=[sequence]), timeout=30)


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until(condition, seconds=15.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def in_seconds(seconds):
    return time.monotonic() + seconds


@pytest.mark.slow
def test_two_services_start_answer_and_drain(tiny_reward, tiny_policy, tmp_path):
    """One of them as they are where TLS and certificates of callers are set for all."""
    pems = Pems(tmp_path)
    cert, key = pems.write("server", "127.0.0.1")
    secured = {"CERT": cert, "KEY": key, "CLIENT_CA": pems.ca_file}
    credentials = grpc.ssl_channel_credentials(
        pems.ca_file.read_bytes(), *(path.read_bytes() for path in reversed(pems.write("caller", "caller")))
    )
    services = [
        LocalService("reward", str(tiny_reward), options=(*THREADS, "--log-format", "json")),
        LocalService(
            "reference",
            str(tiny_policy),
            name="frozen",
            options=(*THREADS, "--metrics-address", "127.0.0.1:0"),
            environment={
                "PLAUDIT_TOKEN": "t",
                **{f"PLAUDIT_TLS_{name}": str(path) for name, path in secured.items()},
            },
        ),
    ]
    with local_services(services, tmp_path) as running:
        assert score(running["reward"].address).results[0].reward.token_count > 3
        with pytest.raises(grpc.RpcError) as caught:
            logprobs(running["frozen"].address, credentials)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        running.check()
        pids = [running[name].pid for name in ("reward", "frozen")]
        assert running.stop(30) == {"reward": 0, "frozen": 0}
        with pytest.raises(ServiceFailed, match="ended with code 0"):
            running.check()
    assert not any(map(is_alive, pids))
    out = (tmp_path / "frozen.log").read_text()
    assert "listening on 127.0.0.1:" in out
    assert "metrics on 127.0.0.1:" in out
    assert f"reference: {tiny_policy}, float32 on cpu, 1 threads" in out
    lines = (tmp_path / "reward.log").read_text().splitlines()
    logged = [json.loads(line) for line in lines if line.startswith("{")]
    (entry,) = [one for one in logged if "RewardService/Score OK" in one["message"]]
    assert len(entry["request_id"]) == 32


@pytest.mark.parametrize(
    ("there", "absent"), [("PLAUDIT_TLS_CERT", "PLAUDIT_TLS_CA"), ("PLAUDIT_TLS_CA", "PLAUDIT_TLS_CERT")]
)
def test_an_environment_in_which_services_and_clients_would_not_speak_the_same_is_refused(there, absent):
    check_tls({})
    check_tls({there: "a.pem", absent: "b.pem"})
    with pytest.raises(ServiceFailed, match=f"{there} is set and {absent} isn't.* or unset {there}$"):
        check_tls({there: "a.pem", absent: ""})


def test_a_directory_says_what_services_and_clients_have(tmp_path):
    check_tls({"PLAUDIT_TLS_CERT": str(tmp_path)})
    with pytest.raises(ServiceFailed, match="PLAUDIT_TLS_CA is set"):
        check_tls({"PLAUDIT_TLS_CA": str(tmp_path)})


PARENT = """
import sys, time
from pathlib import Path
from services.local import LocalService, local_services

service = LocalService("reward", sys.argv[1], options=("--threads", "1"))
with local_services([service], Path(sys.argv[2])) as running:
    print(running["reward"].pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_killed_parent_leaves_no_child(tiny_reward, tmp_path):
    command = [sys.executable, "-c", PARENT, str(tiny_reward), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        assert is_alive(child)
        parent.send_signal(signal.SIGKILL)
        assert wait_until(lambda: not is_alive(child))
    assert "draining after the end of its parent" in (tmp_path / "reward.log").read_text()


def test_a_parent_that_is_gone_before_the_child_looks_is_noticed(tiny_reward, tmp_path):
    log = tmp_path / "log"
    with log.open("wb") as out:
        # Process 1 isn't this test, so the child finds its parent gone from the start.
        command = [sys.executable, "-m", "services.reward", "--model", str(tiny_reward)]
        command += ["--address", "127.0.0.1:0", "--exit-with-parent", "999999999"]
        assert subprocess.run(command, stdout=out, stderr=out, timeout=60).returncode == 0
    assert "draining after the end of its parent" in log.read_text()


def test_a_model_that_is_not_there_is_one_line_and_its_last_words(tmp_path):
    service = LocalService("reference", str(tmp_path / "nowhere"), options=THREADS)
    with pytest.raises(ServiceFailed) as caught, local_services([service], tmp_path):
        pass
    message = str(caught.value)
    assert "the reference service ended with code 70" in message
    assert "reference: the model can't be loaded: " in message
    assert "nowhere: no such folder" in message
    assert "Traceback" not in message


def test_one_that_fails_takes_the_others_down_with_it(tiny_reward, tmp_path):
    services = [
        LocalService("reward", str(tiny_reward), options=THREADS),
        LocalService("reference", "m", options=("--log-format", "xml")),
    ]
    words = "the reference service ended with code 64(.|\n)*--log-format is 'xml'; use text or json"
    with pytest.raises(ServiceFailed, match=words), local_services(services, tmp_path):
        pass
    left = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if str(tiny_reward).encode() in _read(path) and b"services.reward" in _read(path)
    ]
    assert left == []


def _read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_taken_port_is_named(tiny_reward, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        service = LocalService("reward", str(tiny_reward), address=address, options=THREADS)
        words = f"code 69(.|\n)*can't listen on {address}"
        with pytest.raises(ServiceFailed, match=words), local_services([service], tmp_path):
            pass


def test_one_that_takes_too_long_is_stopped(tiny_reward, tmp_path):
    service = LocalService("reward", str(tiny_reward), options=THREADS)
    too_short = local_services([service], tmp_path, ready_within_s=0.0)
    with pytest.raises(ServiceFailed, match="took too long to listen"), too_short:
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_model_loads_ends_it_at_once(tiny_reward, tmp_path, number):
    process = ServiceProcess(LocalService("reward", str(tiny_reward), options=THREADS), tmp_path)
    process.wait_listening(in_seconds(60))
    os.kill(process.pid, number)
    assert process.wait_ended(in_seconds(30)) == 0


STUBBORN = """
import asyncio, sys, grpc
from services.rpc.command import run_service
from services.rpc.server import Service

async def forever(request, context):
    print("begun", flush=True)
    await asyncio.sleep(600)

def register(server):
    handlers = {"Wait": grpc.unary_unary_rpc_method_handler(forever)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x.Y", handlers),))

async def load():
    return "loaded"

run_service("stubborn", 0, lambda options: Service("stubborn", ("x.Y",), register, load))
"""


def test_a_second_ctrl_c_leaves_at_once():
    command = [sys.executable, "-c", STUBBORN, "--model", "m", "--grace", "600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().split()[-1]
        assert process.stdout.readline() == "loaded\n"
        with grpc.insecure_channel(address) as channel:
            call = channel.unary_unary("/x.Y/Wait").future(b"")
            assert process.stdout.readline() == "begun\n"
            process.send_signal(signal.SIGINT)
            assert "draining after SIGINT" in process.stderr.readline()
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(15) == 130
            assert call.exception(15).code() is grpc.StatusCode.UNAVAILABLE


def test_one_that_does_not_answer_sigterm_is_killed(tiny_reward, tmp_path):
    process = ServiceProcess(LocalService("reward", str(tiny_reward), options=THREADS), tmp_path)
    process.wait_listening(in_seconds(60))
    os.kill(process.pid, signal.SIGSTOP)
    process.terminate()
    assert process.wait_ended(in_seconds(0.1)) == -signal.SIGKILL
    assert not is_alive(process.pid)
