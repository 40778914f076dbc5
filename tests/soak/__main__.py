"""Steady load, random faults of a seed, and a look at what they left behind; `make soak` runs it.

    PYTHONPATH=tests:tests/contract:tests/cluster python -m soak --minutes 10 --seed 0 [--write PAGE]

Exit codes: 0 passed, 1 failed; the report says why.
"""

import argparse
import contextlib
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import make_tiny_models
from fault_schedule import scenes

from benchmarks import machine
from plaudit import PlauditError, PolicyClient
from soak import verdict
from soak.load import DEADLINE_S, PUSH_PATIENCE_S, callers
from soak.over_http import http_callers
from soak.overload import overload
from soak.site import Site
from trainer.ppo.roles import RoleUnavailable

WARM_S, CALM_S = 6.0, 6.0
"""Seconds of load before the first fault, after which memory is looked at, and after the last."""
MOST_JOIN_S = 120.0


def main():
    asked = arguments()
    seed = asked.seed if asked.seed is not None else random.randrange(10**6)
    seconds = asked.minutes * 60
    place = {"": "soak", "1": "overload", "gateway": "overload-gateway"}[asked.overload]
    print(f"{place} of {seconds:.0f} s" + (f", seed {seed}" if place == "soak" else ""), flush=True)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    with tempfile.TemporaryDirectory(prefix="plaudit-soak-") as name:
        folder = Path(name)
        make_tiny_models.main(folder)
        with Site(folder) as site, contextlib.ExitStack() as stack:
            if asked.overload:
                text, problems = overload(site, seconds, asked.overload)
            else:
                text, problems = soak(site, folder, stack, seed, seconds)
    print(text)
    if asked.write:
        verdict.write(asked.write, place, text)
    return 1 if problems else 0


def arguments():
    parser = argparse.ArgumentParser(prog="soak", description="Load and random faults for a while.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="of the faults; drawn and printed if left out")
    parser.add_argument(
        "--overload",
        default="",
        choices=["", "1", "gateway"],
        help="ten times the callers instead of faults, over gRPC or the gateway",
    )
    parser.add_argument("--write", type=Path, help="page whose marked part the report replaces")
    return parser.parse_args()


def soak(site, folder, stack, seed, seconds):
    """The report, and what is wrong."""
    gateway = site.add_gateway(site.services["reward"].proxy.address)
    site.add_trainer()
    pusher, kinds = callers(site, folder, stack)
    scores, *_ = kinds
    kinds += http_callers(gateway.proxy.address, stack, scores.ask())
    over, began, load = threading.Event(), time.monotonic(), machine.load_average()
    threads = [threading.Thread(target=kind.run, args=(over,), daemon=True) for kind in kinds]
    for thread in threads:
        thread.start()
    time.sleep(WARM_S)
    warm, played = site.footprints(), Counter()
    for scene in scenes(seed, tuple(site.victims), seconds - WARM_S - CALM_S):
        time.sleep(max(0.0, began + WARM_S + scene.at - time.monotonic()))
        print(
            f"{time.monotonic() - began:6.1f} s  {scene.service}: {scene.what}, {scene.lasts:.1f} s",
            flush=True,
        )
        site.play(scene, over)
        played[f"{scene.what} ({scene.service})"] += 1
        if scene.what == "kill":  # a new process has a beginning of its own
            time.sleep(WARM_S)
            if scene.service in warm:
                warm[scene.service] = site.services[scene.service].footprint()
    time.sleep(CALM_S)
    over.set()
    end = time.monotonic() + MOST_JOIN_S
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    growths = [verdict.Growth(name, warm[name], now) for name, now in site.footprints().items()]
    learned, problems = site.trainer.end()
    growths += learned
    problems += [*verdict.of_calls(kinds), *after(site, pusher, kinds)]
    problems += [problem for growth in growths for problem in growth.problems]
    setting = [
        f"{machine.now()}, commit {verdict.commit()}, `make soak MINUTES={seconds / 60:g} SEED={seed}`: "
        f"{time.monotonic() - began:.0f} s of load",
        f"{machine.processor()}, {os.cpu_count()} processors; load average {load:.1f} at the start",
        f"deadlines of {DEADLINE_S:g} s a call, patience of {PUSH_PATIENCE_S:g} s a push",
        site.trainer.told(),
    ]
    return verdict.report(setting, kinds, growths, played, problems), problems


def after(site, pusher, kinds):
    """Problems with the next good calls, all of which must be answered, and with the weights that serve."""
    for kind in kinds:
        try:
            kind.ask()
        except (PlauditError, RoleUnavailable) as error:
            if not kind.is_bad:
                yield f"{kind.name}: not answered after the faults: {error}"
    with PolicyClient(site.services["policy"].address) as client:
        model = client.get_policy().model
    if (model.step, model.weights_sha256) != pusher.newest:
        yield f"the policy serves step {model.step} ({model.weights_sha256[:12]}), pushed was {pusher.newest}"


if __name__ == "__main__":
    sys.exit(main())
