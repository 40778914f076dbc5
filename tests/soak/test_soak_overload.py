"""What makes a run of overload fail, and how its report reads."""

import os
import time

import pytest

from plaudit import Overloaded
from soak.load import Tally
from soak.overload import HEAD, Phase, goodput, part_within, problems_of, processor_seconds, row, seconds_of
from soak.verdict import MIB


def tally(sent=3, answered=3, rejected=0, failed=0):
    found = Tally()
    found.counts.update(sent=sent, answered=answered, rejected=rejected, failed=failed)
    return found


def phase(rate=1000.0, counts=None, singles=(0.1,) * 100, health=(0.01, 0.02), memory=400, cost=0.001):
    held = {"reward": memory * MIB, "gateway": 100 * MIB}
    return Phase(rate, counts or tally(), list(singles), list(health), held, cost)


def test_all_is_well():
    busy = phase(singles=[0.9] * 100)
    full = phase(rate=900.0, singles=[1.3] * 100, health=[0.9], memory=500, counts=tally(sent=9, rejected=6))
    assert list(problems_of(busy, full, phase())) == []


def test_the_maximum_is_what_was_had_before_and_after():
    assert goodput(phase(rate=1000.0), phase(rate=900.0), phase(rate=800.0)) == 1.0


@pytest.mark.parametrize(
    ("full", "words"),
    [
        (phase(rate=890.0), "goodput fell to 0.89"),
        (phase(counts=tally(sent=4)), "doesn't add up: a call has no end"),
        (phase(singles=[0.1] * 98 + [1.5] * 2), "one item waited 1.50 s (p99)"),
        (phase(singles=[0.1] * 98 + [float("inf")] * 2), "one item waited inf s (p99)"),
        (phase(health=[0.1, 1.2]), "health took 1.20 s"),
        (phase(memory=550), "reward: 400 MiB grew to 550"),
    ],
)
def test_what_fails_a_run(full, words):
    (problem,) = problems_of(phase(), full, phase())
    assert words in problem


def test_a_row_has_all_of_its_columns():
    cells = row(8, phase())
    assert len(cells) == len(HEAD)
    assert cells == ["8 callers", "1000", "1.00", 3, 3, 0, 0, "0.10", "0.02", "reward 400, gateway 100"]


def test_a_call_that_fails_took_forever():
    def refused():
        raise Overloaded("full")

    assert seconds_of(refused) == float("inf")
    assert 0 <= seconds_of(lambda: None) < 60


def test_what_a_process_uses_of_its_processors_is_known():
    before = processor_seconds(os.getpid())
    end = time.process_time() + 0.05  # of work, however long that takes
    while time.process_time() < end:
        pass
    assert processor_seconds(os.getpid()) > before


@pytest.mark.parametrize(
    ("spell", "part"), [((2, 4), 1.0), ((0, 2), 0.5), ((4, 8), 0.25), ((0, 10), 0.4), ((6, 7), 0.0)]
)
def test_a_call_counts_as_far_as_it_was_served_then(spell, part):
    assert part_within(spell, 1, 5) == part
