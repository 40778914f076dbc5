"""The chaos proxy as a command: schedules that are read, drawn and played."""

import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import chaos
import pytest
from chaos import as_line, play, read_schedule
from chaos_proxy import BLACK_HOLE, Fault
from fault_schedule import LINE_SCENES, Scene, scenes

from plaudit import RewardClient
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions

DOCS = Path(__file__).parents[2] / "docs/reliability.md"
GOOD = {"at": 1, "line": "reward", "what": "delay", "lasts": 2.5, "delay": 0.02}


@pytest.fixture
def schedule(tmp_path):
    """schedule(entry, …) is what is read from a file of them."""

    def read(*entries):
        path = tmp_path / "faults.jsonl"
        path.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in entries))
        return read_schedule(path, ["reward", "policy"])

    return read


# --- the format ---


def test_each_kind_is_read(schedule):
    kinds = {
        "delay": ({"delay": 0.5}, Fault(delay=0.5)),
        "throttle": ({"rate": 1000}, Fault(rate=1000)),
        "cut": ({"after": 0}, Fault(after=0)),
        "reset": ({"after": 7}, Fault(after=7, resets=True)),
        "black hole": ({}, BLACK_HOLE),
        "no answers": ({}, Fault(holds=frozenset({"answers"}))),
        "hang": ({}, None),
    }
    assert set(kinds) == set(LINE_SCENES)
    entries = [
        {"at": at, "line": "policy", "what": what, "lasts": 1, **settings}
        for at, (what, (settings, _)) in enumerate(kinds.items())
    ]
    assert schedule(*entries) == [
        Scene(at, "policy", what, 1, fault) for at, (what, (_, fault)) in enumerate(kinds.items())
    ]


def test_scenes_come_in_order_and_may_overlap_on_different_lines(schedule):
    read = schedule({**GOOD, "at": 2, "line": "policy"}, "", GOOD)
    assert [(scene.at, scene.service) for scene in read] == [(1, "reward"), (2, "policy")]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("{", "line 1: : Invalid JSON"),
        ("[]", "line 1: : Input should be an object"),
        ({**GOOD, "at": -1}, "line 1: at: Input should be greater than or equal to 0"),
        ({**GOOD, "at": "1"}, "line 1: at: Input should be a valid number"),
        ({**GOOD, "lasts": 0}, "line 1: lasts: "),
        ({**GOOD, "what": "fire"}, "line 1: what: Input should be 'delay', 'throttle'"),
        ({**GOOD, "much": 1}, "line 1: much: Extra inputs are not permitted"),
        ({**GOOD, "rate": 1000}, "line 1: 'delay' takes delay, found delay and rate"),
        ({**GOOD, "delay": None}, "line 1: 'delay' takes delay, found no setting"),
        ({**GOOD, "what": "hang"}, "line 1: 'hang' takes no setting, found delay"),
        ({**GOOD, "line": "judge"}, "there is no line 'judge'; lines: policy, reward"),
    ],
)
def test_a_wrong_entry_is_named(schedule, entry, words):
    with pytest.raises(SystemExit, match=re.escape(words)):
        schedule(entry)


def test_two_scenes_of_a_line_at_once_are_refused(schedule):
    with pytest.raises(SystemExit, match=r"at 3\.0 s, reward: the scene before is not over yet"):
        schedule(GOOD, {**GOOD, "at": 3})


def test_the_documented_schedule_is_read(schedule):
    (example,) = re.findall(r"```jsonl\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(schedule(example)) == 4


# --- drawn ---


def drawn(capsys, seed):
    lines = ["--line", "reward=127.0.0.1:1", "--line", "policy=127.0.0.1:2"]
    assert chaos.main([*lines, "--seed", str(seed), "--seconds", "300", "--draw"]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"seed {seed}\n"
    return captured.out


def test_a_seed_draws_the_same_schedule_again_and_what_is_printed_is_one(capsys, schedule):
    text = drawn(capsys, 7)
    assert text == drawn(capsys, 7) != drawn(capsys, 8)
    read = schedule(text)
    assert {scene.what for scene in read} == set(LINE_SCENES)
    assert "".join(f"{as_line(scene)}\n" for scene in read) == text


def test_a_schedule_of_lines_leaves_processes_alone():
    assert {scene.what for scene in scenes(3, ("a",), 3600, LINE_SCENES)} == set(LINE_SCENES)


def test_a_line_may_say_where_it_listens():
    assert chaos._line("reward=50052:host:1") == ("reward", ("host:1", 50052))
    assert chaos._line("reward=host:1") == ("reward", ("host:1", 0)), "on a free port"


@pytest.mark.parametrize("line", ["reward", "reward=nowhere", "reward=a:b:1", "=127.0.0.1:1"])
def test_a_line_that_is_none_is_refused(line):
    with pytest.raises(SystemExit, match="is written NAME=HOST:PORT"):
        chaos.main(["--line", line, "--draw"])


# --- played ---


class Line:
    """Notes what befalls it."""

    def __init__(self):
        self.suffered = []

    def suffer(self, fault):
        self.suffered.append(fault)

    def hang(self):
        self.suffered.append("hang")

    def cut(self, resets):
        self.suffered.append("reset" if resets else "cut")


def test_each_scene_begins_and_ends_and_lines_are_good_afterwards():
    lines, told = {"a": Line(), "b": Line()}, []
    delay = Fault(delay=0.001)
    schedule = [Scene(0.0, "a", "delay", 0.004, delay), Scene(0.001, "b", "hang", 0.001, None),
                Scene(0.004, "a", "black hole", 0.001, BLACK_HOLE)]  # fmt: skip
    play(schedule, lines, threading.Event(), told.append)
    assert lines["a"].suffered == [delay, Fault(), BLACK_HOLE, Fault(), Fault()]
    assert lines["b"].suffered == ["hang", "reset", Fault()]
    assert [text.split("  ")[-1] for text in told] == [as_line(scene) for scene in schedule]


def test_it_stops_at_once_when_it_is_over():
    line, over = Line(), threading.Event()
    over.set()
    play([Scene(3600, "a", "black hole", 1, BLACK_HOLE)], {"a": line}, over)
    assert line.suffered == [Fault()]


def test_the_command_stands_before_a_real_service_until_sigterm(tiny_reward, tmp_path):
    options = ModelOptions(str(tiny_reward), "cpu", "float32", 1)
    path = tmp_path / "faults.jsonl"
    path.write_text(json.dumps({**GOOD, "at": 0, "lasts": 0.2}))
    with serve_in_background(lambda: reward_service(options)) as server:
        command = [sys.executable, chaos.__file__, "--line", f"reward={server.address}"]
        process = subprocess.Popen(
            [*command, "--schedule", str(path), "--wait"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            line = process.stdout.readline().split()
            assert line[:-1] == ["reward", "listens", "on"]
            with RewardClient(line[-1]) as client:
                assert len(client.score([("the film is", " good")])) == 1
            assert as_line(Scene(0.0, "reward", "delay", 0.2, Fault(delay=0.02))) in process.stderr.readline()
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.communicate()
