"""`python -m trainer sft|reward-model` as separate processes: started, stopped, killed, gone on with."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from plaudit.clients import TrainerClient
from trainer.__main__ import main
from trainer.metrics_file import read_lines

ROOT = Path(__file__).parents[2]
TORCH_FREE = """
import sys
from trainer.__main__ import main
code = main(sys.argv[1:])
assert not {"torch", "transformers", "grpc"} & set(sys.modules), "imported too early"
sys.exit(code)
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def files(tmp_path: Path, tiny_policy: Path) -> Path:
    """A folder with data and the configuration of both stages, fifty steps of SFT."""
    words = ["good", "dull", "wonderful", "lifeless", "film"]
    demonstrations = [{"prompt": "the film is", "completion": f" {a} {b}"} for a in words for b in words]
    rankings = [
        {
            "prompt": "the film is",
            "completions": [f" good {a}", f" {a} {b}", f" dull {b}"],
            "ranks": [1, 2, 3],
        }
        for a in words
        for b in words
    ]
    for name, lines in (("demonstrations", demonstrations), ("rankings", rankings)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    common = 'checkpoint_every = 1\nthreads = 1\n[model]\ndtype = "float64"\n'
    (tmp_path / "sft.toml").write_text(
        f'[run]\nname = "sft"\n{common}path = "{tiny_policy}"\n[data]\ntrain = "demonstrations.jsonl"\n'
        "[sft]\nnum_train_epochs = 2\nbatch_size = 1\nlearning_rate = 1e-3\n"
    )
    (tmp_path / "rm.toml").write_text(
        f'[run]\nname = "rm"\n{common}path = "runs/sft/policy"\nlayers = 1\n'
        '[data]\ntrain = "rankings.jsonl"\nvalidation = "rankings.jsonl"\n'
        'demonstrations = "demonstrations.jsonl"\n'
        "[reward_model]\nbatch_size = 5\nlearning_rate = 3e-3\nnum_train_epochs = 3\n"
    )
    return tmp_path


@pytest.fixture
def start(files: Path):
    """Starts `python -m trainer` in the folder; nothing outlives the test."""
    processes: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "trainer", *arguments],
            cwd=files,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[str], what: str) -> None:
    """Reads what the process logs until a line holds `what`."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if what in line:
            return
    pytest.fail("".join(seen))


def weights(files: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(files / "runs" / name / "policy" / "model.safetensors")


def losses(files: Path, name: str) -> list[float]:
    return [line["train/loss"] for line in read_lines(files / "runs" / name / "metrics.jsonl")]


@pytest.mark.parametrize("arguments", [["--help"], ["sft", "--help"], ["sft", "sft.toml", "--print-config"]])
def test_help_and_configuration_come_without_torch_in_under_a_second(files: Path, arguments: list[str]):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", TORCH_FREE, *arguments],
        cwd=files,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "sft" in done.stdout
    # Processor time: what the clock says depends on who else is at work here.
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 1.0


@pytest.mark.slow
def test_sft_then_reward_model(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(files)
    assert main(["sft", "sft.toml"]) == 0
    assert main(["reward-model", "rm.toml"]) == 0
    assert "Share of pairs ranked as people did" in capsys.readouterr().out
    assert AutoModelForCausalLM.from_pretrained(files / "runs/sft/policy").config.num_hidden_layers == 2
    reward = AutoModelForSequenceClassification.from_pretrained(files / "runs/rm/reward")
    assert reward.config.num_hidden_layers == 1
    evaluation = json.loads((files / "runs/rm/evaluation.json").read_text())
    assert evaluation["validation"]["accuracy"]["mean"] > 0.9


PARENT = """
import os, subprocess, sys
stage = [sys.executable, "-m", "trainer", "sft", "sft.toml", "--exit-with-parent", str(os.getpid())]
subprocess.Popen(stage).wait()
"""


@pytest.mark.slow
def test_stopped_killed_and_gone_on_with_ends_where_an_undisturbed_run_ends(
    files: Path, start: Start, monkeypatch: pytest.MonkeyPatch
):
    stop_by_its_parents_end(files)

    process = start("sft", "sft.toml", "--resume")
    wait_for(process, "going on from")
    wait_for(process, "/50")
    process.kill()
    process.communicate()

    monkeypatch.chdir(files)
    assert main(["sft", "sft.toml", "--resume"]) == 0
    assert main(["sft", "sft.toml", "--set", "run.name=undisturbed"]) == 0
    expected, found = weights(files, "undisturbed"), weights(files, "sft")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert losses(files, "sft") == losses(files, "undisturbed")
    assert len(losses(files, "sft")) == 50


def stop_by_its_parents_end(files: Path) -> None:
    """It is SIGTERM to the stage: the step is finished and kept."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=files, env=environment, stderr=subprocess.PIPE, text=True
    )
    wait_for(parent, "sft 1/50")
    parent.kill()
    assert parent.stderr is not None
    said = parent.stderr.read()  # to the end: the stage holds the pipe until it is gone
    parent.wait()
    last = said.splitlines()[-1]
    assert last.startswith("stopped after step ")
    assert last.endswith("of 50; go on with --resume")
    assert list((files / "runs/sft/checkpoints").iterdir())


@pytest.mark.slow
def test_a_full_disk_under_standard_output_ends_no_run(files: Path):
    command = [sys.executable, "-m", "trainer", "sft", "sft.toml", "--set", "sft.num_train_epochs=1"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, "--metrics-address", "127.0.0.1:0"],
            cwd=files,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("<stdout> can't be written: No space left on device; the run goes on") == 1
    assert len(losses(files, "sft")) == 25 and weights(files, "sft")


def test_it_can_be_asked_how_it_is_doing_and_ctrl_c_is_130_and_one_line(files: Path, start: Start):
    process = start("sft", "sft.toml", "--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0")
    assert process.stdout is not None
    address = process.stdout.readline().removeprefix("listening on ").strip()
    assert process.stdout.readline().startswith("metrics on 127.0.0.1:")
    wait_for(process, "sft 1/50")
    with TrainerClient(address) as client:
        run = client.get_run()
    assert run.total_steps == 50
    assert "train/loss" in run.metrics
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted; go on from the last checkpoint with --resume"
    assert "Traceback" not in err
