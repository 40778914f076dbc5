"""docs/command-line.md against the command: its lines run, its tables are so."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from plaudit.cli import app, exits
from plaudit.conformance import CHECKS
from plaudit.files.columns import added_columns
from plaudit.files.formats import SUFFIXES
from plaudit.files.journal import FSYNC_EVERY_S

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/command-line.md").read_text(encoding="utf-8")
COMMANDS = get_command(app).commands


def cells(heading):
    """Rows of the table below a heading, as cells without code marks."""
    below = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    found = [line.strip("| ").split(" | ") for line in below.splitlines() if line.startswith("|")]
    return [[cell.replace("`", "") for cell in row] for row in found if not row[0].startswith("--")]


def test_every_line_runs(toy, tmp_path):
    rows = [{"prompt": "The film was", "response": text} for text in (" a joy.", " dull.", " long.")]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "candidates.txt").write_text(" a joy.\n dull.\n long.\n")
    (tmp_path / "plaudit").write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from plaudit.cli import main\nsys.exit(main())\n"
    )
    (tmp_path / "plaudit").chmod(0o755)
    lines = "".join(re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL))
    script = "set -e -o pipefail\nPATH=.:$PATH\n" + lines.replace("127.0.0.1:50052", toy.address)
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "scored.jsonl").read_text().splitlines()) == 3
    assert len((tmp_path / "scored-head.jsonl").read_text().splitlines()) == 2


def test_help_loads_no_client():
    code = (
        "import sys\nfrom plaudit.cli import main\nmain(['score', '--help'])\n"
        "heavy = {'grpc', 'google.protobuf', 'numpy', 'rich', 'pyarrow'} & sys.modules.keys()\n"
        "print(heavy, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ("--tokenizer-sha256" in done.stdout, done.stderr) == (True, "set()\n")


def test_every_command_is_named():
    for name in COMMANDS:
        assert f"plaudit {name}" in PAGE


@pytest.mark.parametrize("command", ["score", "rank", "compare", "status", "check"])
def test_every_option_is_named(command):
    params = [each for each in COMMANDS[command].params if each.param_type_name == "option"]
    options = {max(each.opts, key=len) for each in params} - {"--out"}
    assert {each for each in options if f"`{each}" not in PAGE and f" {each}" not in PAGE} == set()


def test_options_that_are_named_exist():
    below = [each for group in COMMANDS.values() for each in getattr(group, "commands", {}).values()]
    known = {
        opt
        for each in (*COMMANDS.values(), *below)
        for option in each.params
        for opt in (*option.opts, *option.secondary_opts)
    }
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", PAGE)) <= known | {"--help"}


def test_exit_codes():
    said = {int(code) for code, _ in cells("Exit codes")[1:]}
    assert said == {0, 130} | {value for name, value in vars(exits).items() if name.startswith("EXIT_")}


def test_checks():
    _, *table = cells("Check a server against the contract")
    assert table == [[check.name, check.expected] for check in CHECKS]


def test_formats_and_columns():
    rows = cells("Score a file")
    formats = {suffix: name for name, suffixes, _ in rows[1:4] for suffix in suffixes.split(", ")}
    assert formats == SUFFIXES
    everything = added_columns({"truncation": "left", "include_components": True})
    assert tuple(name for name, _ in rows[5:]) == everything


def test_defaults():
    defaults = {each.name: each.default for each in COMMANDS["score"].params}
    assert f"`--window` ({defaults['window']})" in PAGE
    assert f"`--timeout` ({defaults['timeout']:g})" in PAGE
    assert f"every {FSYNC_EVERY_S:g} seconds" in PAGE
