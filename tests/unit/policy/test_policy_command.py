"""The policy's own options, and what its command line needs before a model is loaded."""

import subprocess
import sys

import services.policy.__main__ as main
from services.rpc.command import run_command


def run(*arguments):
    return run_command("policy", 0, main.build, arguments, more=[main.WEIGHTS_ROOT])


def test_a_weights_root_that_is_not_there_exits_64(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(main, "_roots", [])
    missing = str(tmp_path / "missing")
    assert run("--model", "m", "--weights-root", str(tmp_path), "--weights-root", missing) == 64
    assert main._roots == [str(tmp_path), missing]
    assert f"--weights-root: '{missing}' is no folder" in capsys.readouterr().err


def test_help_needs_no_torch():
    code = (
        "import sys, services.policy.__main__ as main\n"
        "from services.rpc.command import run_command\n"
        "assert run_command('policy', 0, main.build, ['--help'], more=[main.WEIGHTS_ROOT]) == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'imported before it is needed'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--weights-root DIR" in done.stdout
