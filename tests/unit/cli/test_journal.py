"""The memory of what is scored: nothing that was written is lost, and nothing half written is believed."""

import json
import subprocess
import sys

import pytest

from plaudit import ItemFailure, Reward
from plaudit.clients import RewardComponent
from plaudit.files import journal as journal_module
from plaudit.files.journal import Journal
from plaudit.files.rows import FileError

FACTS = {"the input's SHA-256": "ab", "--model": ""}
RESULTS = [
    (1, Reward(0.30000001192092896, -1e-12, 3)),
    (4, ItemFailure("INVALID_ARGUMENT", "pair.response: is empty; Ünïcode")),
    (
        5,
        Reward(
            1.5,
            0.5,
            2**32 - 1,
            9,
            components=(RewardComponent("a", 1.0, 2.0), RewardComponent("é", 3.0, 4.0)),
        ),
    ),
    (9, Reward(-0.0, 3.4e38, 1)),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.jsonl.journal"


@pytest.fixture
def written(path):
    with Journal(path, FACTS) as journal:
        for line, result in RESULTS:
            journal.add(line, result)
    return path


def test_it_begins_empty(path):
    with Journal(path, FACTS) as journal:
        assert (journal.after, journal.count, [*journal.results()]) == (0, 0, [])


def test_results_come_back_exactly(written):
    with Journal(written, FACTS) as journal:
        assert (journal.after, journal.count) == (9, 4)
        assert [*journal.results()] == RESULTS


def test_it_can_be_read_while_it_is_open(path):
    with Journal(path, FACTS) as journal:
        for count, (line, result) in enumerate(RESULTS, start=1):
            journal.add(line, result)
            assert [*journal.results()] == RESULTS[:count]


def test_what_is_added_is_with_the_system_at_once(path):
    """A killed process writes nothing any more."""
    with Journal(path, FACTS) as journal:
        journal.add(*RESULTS[0])
        assert path.read_bytes().count(b"\n") == 2


def test_cut_off_anywhere_it_goes_on_behind_the_last_whole_line(written):
    whole = written.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole)):
        written.write_bytes(whole[:size])
        with Journal(written, FACTS) as journal:
            done = max(0, sum(end <= size for end in ends) - 1)
            assert [*journal.results()] == RESULTS[:done]
            for line, result in RESULTS[done:]:
                journal.add(line, result)
        assert written.read_bytes() == whole


@pytest.mark.parametrize(
    "tail", [b"\0" * 4096, b"\0\0\n[10,1,1,1,0,[]]\n", b"null\n", b"[]\n", b"[3,1,1,1,0,[]]\n"]
)
def test_a_tail_that_a_power_cut_spoilt_is_cut_off(written, tail):
    whole = written.read_bytes()
    written.write_bytes(whole + tail)
    with Journal(written, FACTS) as journal:
        assert [*journal.results()] == RESULTS
    assert written.read_bytes() == whole


def test_other_facts_are_refused_by_name_and_nothing_is_lost(written):
    whole = written.read_bytes()
    with pytest.raises(FileError) as caught:
        Journal(written, {**FACTS, "the input's SHA-256": "cd"})
    assert "the input's SHA-256 was 'ab' when this began and is 'cd' now" in str(caught.value)
    assert "--restart" in str(caught.value)
    with Journal(written, FACTS) as journal:
        assert journal.count == 4, "it isn't locked by what was refused"
    assert written.read_bytes() == whole


def test_a_fact_that_is_new_or_gone_is_another(written):
    for facts in ({**FACTS, "--x": "1"}, {"--model": ""}):
        with pytest.raises(FileError, match="None"):
            Journal(written, facts)


def test_restart_forgets(written):
    with Journal(written, {"--model": "other"}, restart=True) as journal:
        assert (journal.after, journal.count) == (0, 0)
    with Journal(written, {"--model": "other"}) as journal:
        assert journal.count == 0


@pytest.mark.parametrize("content", ["hello\n", "5\n", '["a"]\n', '{"prompt": "mine"}\n'])
def test_a_file_that_is_no_journal_is_left_alone(path, content):
    path.write_text(content)
    with pytest.raises(FileError):
        Journal(path, FACTS)
    assert path.read_text() == content


def test_one_process_at_a_time(written):
    code = (
        "import sys\nfrom pathlib import Path\nfrom plaudit.files.journal import Journal\n"
        f"Journal(Path(sys.argv[1]), {FACTS!r}, restart=sys.argv[2] == 'True')"
    )
    whole = written.read_bytes()
    with Journal(written, FACTS):
        for restart in ("False", "True"):
            done = subprocess.run(
                [sys.executable, "-c", code, str(written), restart], capture_output=True, text=True
            )
            assert done.stderr.splitlines()[-1].endswith("another plaudit score works on it now")
        assert written.read_bytes() == whole
    with Journal(written, FACTS) as journal:
        assert journal.count == 4


def test_it_is_put_on_the_disk_now_and_then(path, monkeypatch):
    synced = []
    monkeypatch.setattr(journal_module.os, "fsync", synced.append)
    with Journal(path, FACTS) as journal:
        journal.add(*RESULTS[0])
        assert not synced
        monkeypatch.setattr(journal_module, "FSYNC_EVERY_S", 0.0)
        journal.add(*RESULTS[1])
        assert len(synced) == 1


def test_removed_it_is_gone(written):
    with Journal(written, FACTS) as journal:
        journal.remove()
    assert not written.exists()


def test_its_lines_are_json(written):
    facts, *lines = [json.loads(line) for line in written.read_text().splitlines()]
    assert facts == FACTS
    assert [line[0] for line in lines] == [1, 4, 5, 9]
