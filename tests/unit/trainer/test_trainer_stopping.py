"""SIGTERM before, during and after the steps."""

import os
import signal
import subprocess
import sys

import pytest

from trainer.errors import Stopped, StoppedByCall
from trainer.stopping import StopSignal

EARLY = """
import sys, time
from trainer.stopping import StopSignal, end_early_on_sigterm
end_early_on_sigterm()
if sys.argv[1] == "steps":
    with StopSignal() as stop:
        print("up", flush=True)
        while not stop.wait(1):
            pass
    sys.exit("asked" if stop.requested else 1)
print("up", flush=True)
time.sleep(60)
"""


def ended_by_sigterm(where):
    process = subprocess.Popen(
        [sys.executable, "-c", EARLY, where], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=30)
    return process.returncode, told


def test_before_the_first_step_it_ends_the_process_at_once():
    assert ended_by_sigterm("loading") == (
        Stopped.exit_code,
        "stopped before the first step; start it again\n",
    )


def test_while_steps_are_taken_it_is_a_wish():
    code, told = ended_by_sigterm("steps")
    assert (code, told) == (1, "asked\n")


def test_a_request_is_to_be_started_again_and_a_call_is_not():
    requested, asked = StopSignal(), StopSignal()
    requested.request()
    asked.ask()
    assert requested.requested and asked.requested
    assert type(requested.error("why")) is Stopped
    assert type(asked.error("why")) is StoppedByCall
    assert requested.wait(60), "a wish ends every wait"


def test_the_former_handler_is_back_afterwards():
    former = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5)
    assert signal.getsignal(signal.SIGTERM) is former


@pytest.mark.parametrize("wish", ["request", "ask"])
def test_a_wish_counts_from_any_moment(wish):
    stop = StopSignal()
    getattr(stop, wish)()
    with stop:
        assert stop.requested
