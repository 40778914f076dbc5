"""Calls the reward service without end: `python keep_calling.py ADDRESS FILE`; sums go to FILE, as JSON."""

import itertools
import json
import sys
import time
from pathlib import Path

from plaudit import PlauditError, RewardClient

PAUSE_S = 0.05
KEPT = 5


def sums(reward):
    """After each call: how many, failures, how many went well since, and of what the last failures were."""
    failed, well, last_failures = 0, 0, []
    for calls in itertools.count(1):
        try:
            reward.score([("the film", " is good")], all_or_nothing=True)
            well += 1
        except PlauditError as error:
            failed, well = failed + 1, 0
            last_failures = [*last_failures, f"{type(error).__name__}: {error}"][-KEPT:]
        yield {"calls": calls, "failed": failed, "well": well, "last_failures": last_failures}


def main(address, path):
    with RewardClient(address, timeout=30) as reward:
        for each in sums(reward):
            new = path.with_suffix(".new")
            new.write_text(json.dumps(each), encoding="utf-8")
            new.replace(path)
            time.sleep(PAUSE_S)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
