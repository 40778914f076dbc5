"""A script that ends in the midst of its scores: the stream that is open doesn't keep it."""

import subprocess
import sys

import pytest

SCRIPT = """
import atexit, gc, sys, threading

def what_is_left():
    import grpc
    calls = sum(isinstance(each, grpc.Call) for each in gc.get_objects())
    readers = [each.name for each in threading.enumerate() if each.name == "plaudit-scores"]
    print(calls, readers)

atexit.register(what_is_left)  # the first, so it runs last
from plaudit import RewardClient
gc.disable()
client = RewardClient(sys.argv[1])
results = client.score_many([("p", f"{n}") for n in range(100)], window=10)
next(results)
"""


@pytest.mark.parametrize(
    ("last_line", "code"),
    [("", 0), ("results.close()", 0), ("client.close()", 0), ("sys.exit(3)", 3), ("1 / 0", 1)],
)
def test_no_call_is_left_when_the_interpreter_ends(serve_streams, streams, last_line, code):
    """A thread that may run no more can hold the lock of a call, and who lets go of the call waits for it."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + last_line, serve_streams(streams.answer).address],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, "0 []\n")
    assert streams.ended.acquire(timeout=30)
