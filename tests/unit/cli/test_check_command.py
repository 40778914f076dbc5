"""`plaudit check`: what it prints, and its exit codes."""

import json

import pytest
from toy_reward import ToyEnsemble, ToyReward, serving
from wrong_rewards import WRONG

from plaudit.conformance import CHECKS


def test_a_right_server(run, toy):
    code, out, err = run("check", toy.address)
    assert (code, err) == (0, "")
    *found, last = out.splitlines()
    assert [line.split(":")[0].split("  ")[1] for line in found] == [check.name for check in CHECKS]
    assert {line.split("  ")[0] for line in found} == {"pass", "skip"}
    assert last == f"{len(CHECKS)} checks, 0 failed"


def test_a_wrong_server(run):
    with serving(WRONG["Unnormalised"][0]()) as address:
        code, out, _ = run("check", address)
    (line,) = [line for line in out.splitlines() if line.startswith("fail")]
    assert code == 70
    assert line.startswith("fail  rewards: reward is (raw_reward − mean) / std, and tokens are counted: raw ")
    assert out.splitlines()[-1] == f"{len(CHECKS)} checks, 1 failed"


def test_as_json(run):
    with serving(ToyEnsemble()) as address:
        code, out, _ = run("check", address, "--json")
    findings = json.loads(out)
    assert code == 0
    assert [finding["check"] for finding in findings] == [check.name for check in CHECKS]
    assert {*findings[0]} == {"check", "expected", "verdict", "found"}


def test_a_wrong_server_as_json(run):
    with serving(WRONG["AllAreTop"][0]()) as address:
        code, out, _ = run("check", address, "--json")
    failed = [finding for finding in json.loads(out) if finding["verdict"] == "fail"]
    assert (code, [finding["check"] for finding in failed]) == (70, ["top_n"])


def test_a_model_by_name(run):
    class Several(ToyReward):
        names = ("first", "second")

    with serving(Several()) as address:
        assert run("check", address, "--model", "second")[0] == 0
        code, out, _ = run("check", address, "--model", "third")
    assert (code, "fail  model:" in out) == (70, True)


def test_nobody_there(run, unused_address):
    code, out, err = run("check", unused_address)
    assert (code, out, err.count("\n")) == (69, "", 1)


@pytest.mark.parametrize("arguments", [[], ["host"]])
def test_bad_arguments(run, arguments):
    assert run("check", *arguments)[0] == 64
