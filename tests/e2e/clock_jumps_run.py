"""Run by test_clock_jumps.py: the wall clock of a run's processes, the services' too, is set now and then."""

import itertools
import os
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from clock_jumps import HOUR
from killed_runs import Site

OFTEN = 0.2
"""Seconds between jumps."""


@pytest.fixture
def jumping():
    """Times as the processes have read them, while a thread sets the clock that all of them look at."""
    clock, over, read = Path(os.environ["FAKETIME_TIMESTAMP_FILE"]), threading.Event(), []

    def jump():
        for seconds in itertools.cycle([HOUR, 0, -HOUR, 0]):
            new = clock.with_suffix(".new")
            new.write_text(f"{seconds:+d}\n")
            new.replace(clock)
            if over.wait(OFTEN):
                return
            read.append(datetime.now(UTC).timestamp())

    thread = threading.Thread(target=jump)

    def begin():
        thread.start()
        return read

    yield begin
    over.set()
    if thread.ident:
        thread.join()


def test_a_run_by_clocks_that_jump_ends_as_one_left_alone(tmp_path, tiny_policy, tiny_reward, jumping):
    """Where a call begins, gRPC adds its timeout to the wall clock, and makes of that a time of the monotonic
    one: a clock that is set right in between ends the call at once, and the trainer asks again.
    """
    with Site(tmp_path, tiny_policy, tiny_reward) as site:
        undisturbed = site.run("undisturbed", replicas=2)
        read = jumping()
        assert site.run("jumping", replicas=2) == undisturbed
    assert len(read) > 4, "all clocks in turn"
    assert max(read) - min(read) == pytest.approx(2 * HOUR, abs=120)
