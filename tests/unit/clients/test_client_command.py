"""The `plaudit` command: what it prints, and the exit code of everything that goes wrong."""

import json
import subprocess
import sys

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from scripted_servers import MODEL, POLICY, SCORED, TRAINER, refuse, refuse_plainly

import plaudit
from plaudit.cli import main
from plaudit.v1 import policy_pb2, trainer_pb2

Code = grpc.StatusCode
GENERATED = policy_pb2.GenerateResponse(
    sequences=[
        policy_pb2.GeneratedSequence(
            text=f" a joy {index}.",
            token_ids=[1, 2],
            logprobs=[-1, -2],
            finish_reason=policy_pb2.FINISH_REASON_EOS,
        )
        for index in range(2)
    ],
    model=MODEL,
)
RUN = trainer_pb2.Run(
    run_id="film-reviews",
    stage=trainer_pb2.STAGE_PPO,
    state=trainer_pb2.RUN_STATE_RUNNING,
    step=3,
    total_steps=16,
    started_at=Timestamp(seconds=1_700_000_000),
    metrics={"objective/kl": 1.25, "objective/scores": 0.5},
)


@pytest.fixture
def run(capsys):
    """run("score", …) → (exit code, stdout, stderr)."""

    def command(*arguments):
        code = main(list(arguments))
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return command


def test_version(run):
    assert run("--version") == (0, f"plaudit {plaudit.__version__}\n", "")


def test_score(run, serve_reward):
    server = serve_reward(SCORED)
    assert run("score", "the film", " is good", "--address", server.address) == (0, "0.5\n", "")
    (item,) = server.heard[0].request.items
    assert (item.pair.prompt, item.pair.response) == ("the film", " is good")
    assert server.heard[0].request.all_or_nothing


def test_score_as_json(run, serve_reward):
    code, out, _ = run("score", "a", "b", "--address", serve_reward(SCORED).address, "--json")
    answer = json.loads(out)
    assert (code, answer["reward"], answer["raw_reward"], answer["token_count"]) == (0, 0.5, 1.5, 3)
    assert (answer["model"]["model_id"], answer["model"]["step"]) == ("tiny", 4)


def test_generate(run, serve):
    server = serve(POLICY, {"Generate": [GENERATED]})
    options = [
        "--max-new-tokens",
        "9",
        "--temperature",
        "0.5",
        "--top-p",
        "0.9",
        "--samples",
        "2",
        "--seed",
        "5",
    ]
    code, out, _ = run("generate", "the film was", "--address", server.address, *options)
    assert (code, out) == (0, " a joy 0.\n a joy 1.\n")
    request = server.heard[0].request
    assert (request.prompts[0].text, request.prompts[0].seed) == ("the film was", 5)
    assert (request.sampling.max_new_tokens, request.samples_per_prompt) == (9, 2)
    assert (request.sampling.temperature, request.sampling.top_p) == (0.5, pytest.approx(0.9))


def test_generate_in_a_chat(run, serve):
    server = serve(POLICY, {"Generate": [GENERATED]})
    run("generate", "Hi", "--chat", "--address", server.address)
    (turn,) = server.heard[0].request.prompts[0].chat.messages
    assert (turn.role, turn.content) == ("user", "Hi")


def test_generate_as_json(run, serve):
    server = serve(POLICY, {"Generate": [GENERATED]})
    _, out, _ = run("generate", "a", "--address", server.address, "--json")
    first = json.loads(out)["sequences"][0]
    assert (first["token_ids"], first["logprobs"], first["finish_reason"]) == ([1, 2], [-1.0, -2.0], "eos")


def test_run(run, serve):
    server = serve(TRAINER, {"GetRun": [trainer_pb2.GetRunResponse(run=RUN)]})
    code, out, _ = run("run", "--address", server.address)
    assert code == 0
    for words in ("film-reviews", "ppo", "running", "3 of 16", "objective/kl", "1.25", "none yet"):
        assert words in out


def test_run_that_failed(run, serve):
    failed = trainer_pb2.Run(run_id="r", state=trainer_pb2.RUN_STATE_FAILED, error="loss is not finite")
    server = serve(TRAINER, {"GetRun": [trainer_pb2.GetRunResponse(run=failed)]})
    code, out, _ = run("run", "--address", server.address)
    assert (code, "loss is not finite" in out) == (0, True)


def test_run_as_json(run, serve):
    server = serve(TRAINER, {"GetRun": [trainer_pb2.GetRunResponse(run=RUN)]})
    state = json.loads(run("run", "--address", server.address, "--json")[1])
    assert (state["step"], state["metrics"]["objective/kl"], state["last_step_at"]) == (3, 1.25, None)
    assert state["started_at"] == "2023-11-14T22:13:20+00:00"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["score", "a", "b"],
        ["score", "a", "--address", "host:1"],
        ["score", "a", "b", "--address", "host"],
        ["score", "a", "b", "--address", "host:1", "--timeout", "0"],
        ["score", "a", "b", "--address", "host:1", "--timeout", "soon"],
        ["generate", "a", "--address", "host:1", "--max-new-tokens", "-1"],
        ["generate", "a", "--address", "host:1", "--seed", "-1"],
    ],
    ids=" ".join,
)
def test_bad_arguments(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (64, "")
    assert err


def test_values_the_service_refuses(run, serve_reward):
    server = serve_reward(refuse(Code.INVALID_ARGUMENT, "items[0].pair.response: is empty"))
    code, out, err = run("score", "a", "", "--address", server.address)
    assert (code, out) == (64, "")
    assert err == f"plaudit: reward at {server.address}: Score: items[0].pair.response: is empty\n"


def test_a_name_that_the_service_does_not_know(run, serve_reward):
    server = serve_reward(refuse(Code.NOT_FOUND, "no model 'zz' here"))
    code, _, err = run("score", "a", "b", "--model", "zz", "--address", server.address)
    assert (code, "no model 'zz' here" in err) == (64, True)


def test_nobody_there(run, unused_address):
    code, out, err = run("score", "a", "b", "--address", unused_address)
    assert (code, out, err.count("\n")) == (69, "", 1)
    assert err.startswith(f"plaudit: reward at {unused_address}: Score: not reachable for ")


def test_a_service_that_loads(run, serve_reward):
    server = serve_reward(refuse(Code.UNAVAILABLE, "the model is loading", pushback_ms=-1))
    code, _, err = run("score", "a", "b", "--address", server.address)
    assert (code, "the model is loading" in err) == (69, True)


@pytest.mark.parametrize("code", [Code.INTERNAL, Code.FAILED_PRECONDITION, Code.UNAUTHENTICATED])
def test_anything_else(run, serve_reward, code):
    server = serve_reward(refuse_plainly(code, "no"))
    exit_code, out, err = run("score", "a", "b", "--address", server.address)
    assert (exit_code, out, err.count("\n")) == (70, "", 1)


def test_as_a_process(unused_address):
    command = [sys.executable, "-c", "import sys; from plaudit.cli import main; sys.exit(main())"]
    done = subprocess.run(
        [*command, "run", "--address", unused_address, "--timeout", "20"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (69, "", 1)
