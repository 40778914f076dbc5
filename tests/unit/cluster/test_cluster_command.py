"""The command line: options, exit codes, and how fast it says what it can do."""

import subprocess
import sys
from pathlib import Path

import pytest

from trainer.cluster import __main__ as command, calls
from trainer.errors import TrainerError

ROOT = Path(__file__).parents[3]
TOML = ROOT / "k8s/base/ppo.toml"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90.0), ("15m", 900.0), ("1.5h", 5400.0), ("2d", 172800.0)]
)
def test_durations(text, seconds):
    assert command.duration(text) == seconds


@pytest.mark.parametrize("text", ["15", "m", "-1m", "1 m", "1w", ""])
@pytest.mark.parametrize("words", [("wait",), ("resume",), ("submit", str(TOML))])
def test_a_duration_without_a_unit_is_refused_before_anything_is_asked(run, server, words, text):
    code, _, err = run(*words, "--timeout", text)
    assert code == 64 and "--timeout" in err and "15m" in err and server.asked == []


@pytest.mark.parametrize(
    "words", [("wait", "--until", "tomorrow"), ("submit",), ("apply",), ("wait", "--all")]
)
def test_wrong_usage_is_64(run, words):
    assert run(*words)[0] == 64


def test_a_namespace_and_a_context_reach_the_cluster(monkeypatch, capsys):
    seen = []

    def open_cluster(context, namespace):
        seen.append((context, namespace))
        raise TrainerError("enough")

    monkeypatch.setattr(calls, "open_cluster", open_cluster)
    for words in (["wait"], ["status"], ["resume"], ["submit", str(TOML)]):
        assert command.main([*words, "-n", "team-a", "--context", "kind-plaudit"]) == 70
        assert command.main(words) == 70
    assert seen == [("kind-plaudit", "team-a"), (None, "plaudit")] * 4
    assert capsys.readouterr().err == "enough\n" * 8


def test_a_context_that_is_not_there_is_64(kubeconfig, capsys):
    assert command.main(["wait", "--context", "elsewhere"]) == 64
    assert "--context" in capsys.readouterr().err


def test_an_api_server_that_is_not_there_is_69(kubeconfig, monkeypatch, capsys):
    monkeypatch.setattr(calls, "PAUSES_S", (0.0,))
    assert command.main(["status", "--context", "nobody"]) == 69
    assert "http://127.0.0.1:9: list Pod" in capsys.readouterr().err


def test_a_fault_of_ours_shows_its_stack(monkeypatch):
    monkeypatch.setattr(calls, "open_cluster", lambda context, namespace: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command.main(["status"])


def test_help_needs_neither_the_cluster_nor_its_client():
    """So that it answers at once: kubernetes alone takes a second to import, torch several."""
    code = "import sys; from trainer.cluster import __main__ as it; it.main(['--help']); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100, check=True
    )
    for name in ("wait", "status", "submit", "resume"):
        assert f"  {name} " in done.stdout
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {"kubernetes", "torch", "transformers", "grpc", "pydantic"}
