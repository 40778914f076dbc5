"""The gateway as a process in front of a reward service; what it loads, says and ends with."""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from services.gateway.command import run_command
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions

BODY = {"items": [{"prompt": "the film is", "response": " good"}]}
HEAVY = {"torch", "transformers", "tokenizers", "lm", "services.reward", "services.batching"}


def start(*options, **environment):
    command = [sys.executable, "-m", "services.gateway", "--address", "127.0.0.1:0", *options]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def refused(*options):
    """Exit code and the lines that were said of a command line that can't work."""
    command = [sys.executable, "-m", "services.gateway", *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert not ended.stdout
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stderr.strip()


def stop(process, how=signal.SIGTERM):
    process.send_signal(how)
    _, said = process.communicate(timeout=30)
    return process.returncode, said


def test_it_serves_says_where_and_ends_in_good_order(tiny_reward):
    model = ModelOptions(str(tiny_reward), "cpu", "float32", 1)
    with serve_in_background(lambda: reward_service(model)) as reward:
        process = start("--reward", reward.address, "--log-format", "json")
        try:
            address = re.fullmatch(r"listening on (127\.0\.0\.1:\d+)\n", process.stdout.readline())[1]
            with httpx.Client(base_url=f"http://{address}", timeout=30) as http:
                answer = http.post("/v1/score", json=BODY, headers={"x-request-id": "mine"})
                assert answer.status_code == 200
                assert answer.json()["results"][0]["token_count"] > 3
                assert http.get("/readyz").status_code == 200
                assert http.get("/docs").status_code == 200
                code, said = stop(process)
        finally:
            process.kill()
    assert code == 0
    lines = [json.loads(line) for line in said.splitlines()]
    (entry,) = [
        line for line in lines if line["logger"] == "services.gateway.requests" and "score" in line["message"]
    ]
    assert entry["request_id"] == "mine"
    assert re.fullmatch(r"POST /v1/score 200 \d\.\d{3} s", entry["message"])
    assert "uvicorn.access" not in said, "one line a request, and that is ours"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_without_a_reward_service_it_lives_and_is_not_ready(how):
    process = start("--reward", "127.0.0.1:1")
    try:
        address = process.stdout.readline().split()[-1]
        assert httpx.get(f"http://{address}/healthz").status_code == 200
        assert httpx.get(f"http://{address}/readyz").status_code == 503
        code, said = stop(process, how)
    finally:
        process.kill()
    assert code == 0
    assert re.search(
        r"^\S+ \S+ WARNING services.gateway.problems \[\w{32}\] reward at 127.0.0.1:1", said, re.M
    )


def test_it_says_where_health_and_metrics_are():
    process = start(
        "--reward", "127.0.0.1:1", "--metrics-address", "127.0.0.1:0", "--health-address", "127.0.0.1:0"
    )
    try:
        lines = dict(process.stdout.readline().strip().split(" on ") for _ in range(3))
        assert lines.keys() == {"listening", "metrics", "health"}
        assert "plaudit_build_info" in httpx.get(f"http://{lines['metrics']}/metrics").text
        assert httpx.get(f"http://{lines['health']}/healthz").status_code == 200
        assert httpx.get(f"http://{lines['health']}/metrics").status_code == 404
        assert stop(process)[0] == 0
    finally:
        process.kill()


@pytest.fixture
def keep_logging():
    before = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:], logging.root.level = before


def test_it_loads_no_model_code():
    look = "import sys, services.gateway.command, services.gateway.server; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout
    assert "fastapi" in loaded.split()
    assert not HEAVY & set(loaded.split())


def test_help_loads_no_server():
    look = (
        "import sys; from services.gateway.command import run_command; run_command(['--help']); "
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout
    assert "HOST:PORT of the reward service" in done
    assert not {"fastapi", "uvicorn", "grpc"} & set(done.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "Missing option '--reward'"),
        (("--reward", "here"), "gateway: --reward: address: 'here' is not host:port"),
        (("--reward", "a:1", "--address", "0.0.0.0:8080"), "gateway: --address 0.0.0.0:8080 can be reached"),
        (("--reward", "a:1", "--address", "8080"), "gateway: --address is '8080'; use HOST:PORT"),
        (("--reward", "a:1", "--log-format", "xml"), "gateway: --log-format is 'xml'; use text or json"),
        (("--reward", "a:1", "--grace", "soon"), "Invalid value for '--grace'"),
    ],
)
def test_options_that_cannot_work_are_one_line_and_64(options, words, keep_logging, capsys):
    assert run_command(options) == 64
    said = capsys.readouterr()
    assert not said.out
    assert words in said.err.splitlines()[-1]


def test_the_process_ends_with_that_code():
    code, said = refused("--reward", "here")
    assert code == 64
    assert said.startswith("gateway: --reward: address: 'here' is not host:port")
    assert len(said.splitlines()) == 1


def test_a_port_that_is_taken_is_one_line_and_69():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, said = refused("--reward", "127.0.0.1:1", "--address", address)
    assert code == 69
    assert said == f"gateway: can't listen on {address}: Address already in use; choose another port"
