"""The command against the real services: files that are killed in the middle, ranks, comparisons, status."""

import contextlib
import json
import subprocess
import sys
import time

import pytest

from plaudit import RewardClient
from plaudit.cli import main
from plaudit.v1 import trainer_pb2_grpc
from services.policy.service import policy_service
from services.reference.service import reference_service
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions
from services.rpc.interceptors import Readiness
from services.rpc.server import Service
from trainer.board import Board
from trainer.servicer import FULL_NAME, TrainerServicer
from trainer.stopping import StopSignal

PLAUDIT = [sys.executable, "-c", "import sys; from plaudit.cli import main; sys.exit(main())"]
WORDS = ("film", "good", "dull", "lifeless", "a", "story", "what", "performance", "not", "worth", "seeing")
ROWS = 3000
BAD = {7: '{"prompt": "broken', 8: "", 1500: '{"prompt": "p", "response": ""}', 2999: "[]"}
WAIT_S = 60


def options(folder):
    return ModelOptions(str(folder), "cpu", "float32", 1)


@pytest.fixture(scope="module")
def reward(tiny_reward):
    """The address of a reward service."""
    with serve_in_background(lambda: reward_service(options(tiny_reward))) as server:
        yield server.address


def row(number):
    return {
        "id": number,
        "prompt": "the film",
        "response": f" {WORDS[number % 11]} {WORDS[number % 7]} {number}",
    }


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "".join(BAD.get(number, json.dumps(row(number))) + "\n" for number in range(ROWS))
    (tmp_path / "in.jsonl").write_text(text)
    return tmp_path


def lines_in(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_once(command, path, count):
    """Runs the command and kills it (SIGKILL) as soon as `path` has `count` lines; False if it was over."""
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + WAIT_S
        while lines_in(path) < count and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
    return process.returncode < 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_file_that_is_killed_again_and_again_is_scored_once(reward, files):
    command = [*PLAUDIT, "score", "in.jsonl", "-o", "out.jsonl", "--address", reward, "--window", "64"]
    journal, out = files / "out.jsonl.journal", files / "out.jsonl"
    for count in (1, 2, 700, 701, 1600):
        assert kill_once(command, journal, count)
        assert not out.exists()
    kill_once(command, files / "out.jsonl.partial", 1)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 65, done.stderr
    assert done.stderr.startswith(
        f"plaudit: scored {ROWS - 4:,} rows; 3 without a score in out.jsonl.bad.jsonl"
    )
    scored = [json.loads(line) for line in out.read_text().splitlines()]
    good = [row(number) for number in range(ROWS) if number not in BAD]
    assert [{name: each[name] for name in ("id", "prompt", "response")} for each in scored] == good
    bad = [json.loads(line)["line"] for line in (files / "out.jsonl.bad.jsonl").read_text().splitlines()]
    assert bad == [8, 1501, 3000]
    with RewardClient(reward) as client:
        expected = client.score([(each["prompt"], each["response"]) for each in good])
    for each, result in zip(scored, expected, strict=True):
        assert each["raw_reward"] == pytest.approx(result.raw_reward, abs=1e-5)
        assert each["reward"] == pytest.approx(result.reward, abs=1e-5)
        assert each["token_count"] == result.token_count
    assert {path.name for path in files.iterdir()} == {"in.jsonl", "out.jsonl", "out.jsonl.bad.jsonl"}


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_scored(reward, files):
    command = [*PLAUDIT, "score", "in.jsonl", "-o", "out.jsonl", "--address", reward]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + WAIT_S
        while lines_in(files / "out.jsonl.journal") < 100:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(2)
        _, told = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert told == "plaudit: what is scored so far is kept; the same command goes on from there\n"
    assert lines_in(files / "out.jsonl.journal") >= 100


@pytest.fixture
def run(capsys):
    def command(*arguments):
        code = main(list(arguments))
        return code, capsys.readouterr().out

    return command


def test_score_of_one_pair_is_the_clients(run, reward):
    with RewardClient(reward) as client:
        expected = client.score([("the film", " is good")]).rewards.item()
    code, out = run("score", "the film", " is good", "--address", reward)
    assert (code, float(out)) == (0, pytest.approx(expected, abs=1e-5))


def test_rank_is_the_clients(run, reward):
    candidates = [" is good", " is dull", "", " is good"]
    with RewardClient(reward) as client:
        expected = client.rank("the film", candidates)
    code, out = run("rank", "the film", *candidates, "--json", "--address", reward)
    found = json.loads(out)
    assert code == 65
    assert [(each["index"], each["rank"]) for each in found["ranked"]] == [
        (each.index, each.rank) for each in expected.ranked
    ]
    assert [each["index"] for each in found["unranked"]] == [2]


def test_compare_is_the_clients(run, reward):
    with RewardClient(reward) as client:
        expected = client.compare("the film", " is good", " is dull", temperature=0.5)
    code, out = run(
        "compare", "the film", " is good", " is dull", "--temperature", "0.5", "--json", "--address", reward
    )
    assert (code, json.loads(out)["probability"]) == (0, pytest.approx(expected.probability, abs=1e-5))


def trainer_service():
    async def load():
        return ""

    servicer = TrainerServicer(Board("run-1"), StopSignal(), Readiness())
    return Service(
        name="trainer",
        full_names=(FULL_NAME,),
        register=lambda server: trainer_pb2_grpc.add_TrainerServiceServicer_to_server(servicer, server),
        load=load,
    )


def test_status_of_every_service(run, reward, tiny_policy, tiny_reward):
    makers = [
        lambda: policy_service(options(tiny_policy)),
        lambda: reference_service(options(tiny_policy)),
        trainer_service,
    ]
    with contextlib.ExitStack() as stack:
        addresses = [stack.enter_context(serve_in_background(make)).address for make in makers]
        code, out = run("status", *addresses, reward, "--json")
    sights = json.loads(out)
    assert code == 0
    assert [sight["service"] for sight in sights] == ["policy", "reference", "trainer", "reward"]
    assert {sight["health"] for sight in sights} == {"serving"}
    policy, reference, trainer, scorer = sights
    assert policy["model"]["weights_sha256"] == reference["model"]["weights_sha256"]
    assert (scorer["name"], scorer["model"]["model_id"]) == ("reward", str(tiny_reward))
    empty = {"items": 0, "tokens": 0, "bytes": 0}
    assert all(sight["queue"] == empty for sight in (policy, reference, scorer))
    assert trainer["name"].startswith("run-1 (")
