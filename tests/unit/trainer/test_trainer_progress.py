import io
import logging

import pytest
from rich.console import Console

from trainer import progress
from trainer.progress import StepProgress, show_table, track, waiting


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def terminal(wide: int = 160) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=True, width=wide, color_system=None), text


def plain() -> Console:
    return Console(file=io.StringIO(), force_terminal=False)


def test_plain_lines_come_at_first_every_ten_seconds_and_at_last(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    clock = Clock()
    with StepProgress("sft", 20, live=plain(), clock=clock) as bar:
        for step in range(20):
            clock.now += 3
            bar.advance({"loss": 2.0 / (step + 1), "tokens/s": 410.123})
    assert [record.getMessage() for record in caplog.records] == [
        "sft 1/20  loss 2  tokens/s 410.1, 0:57 left",
        "sft 5/20  loss 0.4  tokens/s 410.1, 0:45 left",
        "sft 9/20  loss 0.2222  tokens/s 410.1, 0:33 left",
        "sft 13/20  loss 0.1538  tokens/s 410.1, 0:21 left",
        "sft 17/20  loss 0.1176  tokens/s 410.1, 0:09 left",
        "sft 20/20  loss 0.1  tokens/s 410.1",
    ]


def test_time_left_counts_this_process_only(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    clock = Clock()
    with StepProgress("sft", 1000, done=900, live=plain(), clock=clock) as bar:
        clock.now += 60
        bar.advance({})
    assert "901/1000" in caplog.text
    assert "1:39:00 left" in caplog.text


def test_a_terminal_shows_bar_and_live_line(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    console, text = terminal()
    with StepProgress("sft", 2, live=console) as bar:
        bar.advance({"loss": 1.5})
        bar.advance({"loss": 1.25})
    assert "2/2" in text.getvalue()
    assert "loss 1.25" in text.getvalue()
    assert caplog.text == ""


@pytest.mark.parametrize("terminal_", [True, False])
def test_track_gives_every_item(terminal_: bool):
    console = terminal()[0] if terminal_ else plain()
    assert list(track([1, 2, 3], "counting", console)) == [1, 2, 3]


def test_what_took_long_is_told_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    caplog.set_level(logging.INFO)
    with waiting("blinking", plain()):
        pass
    list(track([1], "blinking", plain()))
    assert caplog.text == ""
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    with waiting("loading m", plain()):
        clock.now += 65
    assert [record.getMessage() for record in caplog.records] == ["loading m: 1:05"]


def test_waiting_spins_on_a_terminal():
    console, text = terminal()
    with waiting("loading m", console):
        pass
    assert "loading m" in text.getvalue()


def test_tables(capsys: pytest.CaptureFixture[str]):
    show_table("Sizes", ("what", "much"), [("a", 1), ("b", 0.123456)])
    out = capsys.readouterr().out
    assert "Sizes" in out
    assert "what" in out
    assert "0.1235" in out
    show_table("Plain", ("", ""), [("a", 1)])
    assert "┡" not in capsys.readouterr().out
