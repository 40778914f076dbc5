"""`plaudit token new`: the token on stdout, its digest in the file, and nothing else."""

import subprocess
import sys
import tomllib
from datetime import UTC, datetime, timedelta

import pytest

from plaudit.access import SCOPES, token_digest
from plaudit.cli import main
from services.rpc.tokens import parse_tokens


@pytest.fixture
def file(tmp_path):
    return tmp_path / "tokens.toml"


def new(file, *arguments):
    return main(["token", "new", str(file), *arguments])


def test_a_token_is_printed_and_its_line_is_one_that_servers_read(file, capsys):
    assert new(file, "--name", "alice", "--scope", "score", "--scope", "weights:push") == 0
    token, *rest = capsys.readouterr().out.splitlines()
    assert rest == [] and token.startswith("plaudit_") and len(token) > 40
    found = parse_tokens(file.read_bytes(), "it").of_token(token)
    assert (found.name, found.scopes, found.expires) == ("alice", {"score", "weights:push"}, None)
    assert token not in file.read_text() and token_digest(token) in file.read_text()


def test_only_the_owner_reads_a_new_file(file):
    new(file, "--name", "alice", "--scope", "score")
    assert file.stat().st_mode & 0o777 == 0o600


def test_tokens_are_added_and_what_was_there_stays(file, capsys):
    file.write_text("# ours\n[default]\nin_flight = 3\n")
    file.chmod(0o640)
    for _ in range(2):
        assert new(file, "--name", "alice", "--scope", "score") == 0
    text = file.read_text()
    assert text.startswith("# ours\n[default]\nin_flight = 3\n\n[[token]]\n")
    assert file.stat().st_mode & 0o777 == 0o640
    tokens = parse_tokens(text.encode(), "it")
    for token in capsys.readouterr().out.split():
        assert tokens.of_token(token).quota.in_flight == 3
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_expiry(file):
    day = (datetime.now(UTC) + timedelta(days=30)).date()
    assert new(file, "--name", "alice", "--scope", "score", "--expires", str(day)) == 0
    (entry,) = tomllib.loads(file.read_text())["token"]
    assert entry["expires"] == day


def test_a_front_end_may_speak_for_others(file, capsys):
    assert new(file, "--name", "gateway", "--scope", "score", "--speaks-for-others") == 0
    found = parse_tokens(file.read_bytes(), "it").of_token(capsys.readouterr().out.strip())
    assert found.speaks_for_others


@pytest.mark.parametrize("scope", SCOPES)
def test_every_scope_can_be_given(file, scope):
    assert new(file, "--name", "a", "--scope", scope) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scope", "score"], "--name"),
        (["--name", "alice"], "--scope"),
        (["--name", "a b", "--scope", "score"], "use 1 to 100 letters"),
        (["--name", "ä", "--scope", "score"], "use 1 to 100 letters"),
        (["--name", "alice", "--scope", "scores"], "'scores' is none; use score"),
        (["--name", "alice", "--scope", "score", "--expires", "2020-01-01"], "2020-01-01 is over"),
        (["--name", "alice", "--scope", "score", "--expires", "soon"], "--expires"),
    ],
)
def test_what_cannot_be_leaves_the_file_alone(file, capsys, arguments, words):
    assert new(file, *arguments) == 64
    captured = capsys.readouterr()
    assert words in " ".join(captured.err.split())
    assert captured.out == ""
    assert not file.exists()


def test_a_file_that_cannot_be_written_is_one_line(tmp_path, capsys):
    assert new(tmp_path / "none" / "tokens.toml", "--name", "a", "--scope", "score") == 70
    assert capsys.readouterr().err.count("\n") == 1


def test_it_needs_no_grpc():
    code = "import sys; from plaudit.cli import main; main(['token']); assert 'grpc' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
