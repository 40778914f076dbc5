"""Clients that are not Python, as docs/other-languages.md has them: Node, buf curl and grpcurl."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from plaudit import RewardClient
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions
from services.rpc.server import ServerOptions

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/other-languages.md").read_text(encoding="utf-8")
ADDRESS = "127.0.0.1:50052"
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
PROMPT, GOOD, BAD = "The film is", " a delight from start to end.", " two hours I won't get back."


def needs(tool):
    return pytest.mark.skipif(shutil.which(tool, path=PATH) is None, reason=f"{tool} isn't installed")


def serving(folder, **options):
    model = ModelOptions(str(folder), dtype="float32", threads=1)
    return serve_in_background(lambda: reward_service(model), ServerOptions(**options))


@pytest.fixture(scope="module")
def server(tiny_reward):
    with serving(tiny_reward) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with RewardClient(server.address) as made:
        yield made


def run(arguments, folder=ROOT, **environment):
    return subprocess.run(
        arguments, cwd=folder, capture_output=True, text=True, timeout=100,
        env={**os.environ, "PATH": PATH, **environment},
    )  # fmt: skip


def commands(tool):
    """The page's lines that call `tool`."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [line for line in "".join(blocks).splitlines() if line.startswith(f"{tool} ")]


def answer(line, server):
    done = run(shlex.split(line.replace(ADDRESS, server.address)))
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- Node ---


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """The example with what it needs, beside the protos as in a checkout."""
    checkout = tmp_path_factory.mktemp("checkout")
    folder = checkout / "examples/clients/node"
    shutil.copytree(ROOT / "examples/clients/node", folder, ignore=shutil.ignore_patterns("node_modules"))
    shutil.copytree(ROOT / "protos", checkout / "protos")
    done = run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], folder)
    assert done.returncode == 0, done.stderr
    return folder


def lines(done):
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@needs("npm")
def test_node_scores_a_pair_and_a_stream(node, server, client):
    first, *streamed = lines(run(["node", "score.mjs", server.address], node))
    good, bad = client.score([(PROMPT, GOOD), (PROMPT, BAD)])
    assert first == {
        "reward": pytest.approx(good.reward, abs=1e-6), "raw_reward": pytest.approx(good.raw_reward, abs=1e-6)
    }  # fmt: skip
    by_index = {line["index"]: line for line in streamed}
    assert sorted(by_index) == [0, 1, 2]
    assert by_index[0]["reward"] == pytest.approx(good.reward, abs=1e-6)
    assert by_index[2]["reward"] == pytest.approx(bad.reward, abs=1e-6)
    assert "response: is empty" in by_index[1]["error"]


@needs("npm")
def test_node_streams_more_than_a_window_holds(node, server, client):
    """5,000 pairs: every one answered once, though the server lets only some be in flight."""
    source = (node / "score.mjs").read_text()
    many = re.sub(r"const responses = .*", "const responses = Array(5_000).fill(' good');", source)
    (node / "many.mjs").write_text(many)
    _, *streamed = lines(run(["node", "many.mjs", server.address], node))
    (expected,) = client.score([(PROMPT, " good")])
    assert sorted(line["index"] for line in streamed) == list(range(5_000))
    assert {round(line["reward"], 5) for line in streamed} == {round(expected.reward, 5)}


@needs("npm")
def test_node_shows_the_token(node, tiny_reward):
    with serving(tiny_reward, token="word") as guarded:
        assert len(lines(run(["node", "score.mjs", guarded.address], node, PLAUDIT_TOKEN="word"))) == 4
        refused = run(["node", "score.mjs", guarded.address], node, PLAUDIT_TOKEN="")
    assert refused.returncode == 1
    assert "UNAUTHENTICATED" in refused.stderr


@needs("npm")
def test_node_says_where_nobody_listens(node):
    done = run(["node", "score.mjs", "127.0.0.1:1"], node)
    assert done.returncode == 1
    assert done.stderr.startswith("127.0.0.1:1: 14 UNAVAILABLE")


# --- the shell ---


@needs("buf")
def test_buf_curl_does_what_the_page_says(server, client):
    listed, scored, ranked = (answer(line, server) for line in commands("buf"))
    assert {"plaudit.v1.RewardService", "inference.GRPCInferenceService"} <= set(listed.split())
    (expected,) = client.score([(PROMPT, " a delight.")])
    (result,) = json.loads(scored)["results"]
    assert result["reward"]["reward"] == pytest.approx(expected.reward, abs=1e-6)
    assert result["reward"]["tokenCount"] == expected.token_count
    order = [each.get("index", 0) for each in json.loads(ranked)["ranked"]]
    assert order == [each.index for each in client.rank(PROMPT, [" a bore.", " a delight."]).ranked]


@needs("buf")
def test_buf_curl_streams_and_shows_the_token(tiny_reward):
    pair = {"pair": {"prompt": PROMPT, "response": GOOD}}
    messages = "".join(json.dumps({"items": [{"item_id": name, "item": pair}]}) for name in "ab")
    header = "authorization: Bearer word"
    with serving(tiny_reward, token="word") as guarded:
        command = [
            "buf", "curl", "--http2-prior-knowledge", "--protocol", "grpc", "-d", messages,
            "--header", header, "--reflect-header", header,
            f"http://{guarded.address}/plaudit.v1.RewardService/ScoreStream",
        ]  # fmt: skip
        done = run(command)
        refused = run([part for part in command if part not in ("--header", header, "--reflect-header")])
    assert done.returncode == 0, done.stderr
    assert sorted(re.findall(r'"itemId": "(\w)"', done.stdout)) == ["a", "b"]
    assert refused.returncode != 0


@needs("buf")
def test_buf_curl_prints_errors_with_their_path(server):
    url = f"http://{server.address}/plaudit.v1.RewardService/Score"
    done = run(["buf", "curl", "--http2-prior-knowledge", "--protocol", "grpc", "-d", "{}", url])
    assert done.returncode != 0
    assert "items: is empty; send at least one item" in done.stderr


@needs("grpcurl")
def test_grpcurl_does_what_the_page_says(server, client):
    (line,) = commands("grpcurl")
    (result,) = json.loads(answer(line, server))["results"]
    (expected,) = client.score([(PROMPT, " a delight.")])
    assert result["reward"]["raw_reward"] == pytest.approx(expected.raw_reward, abs=1e-6)
