"""A PPO run that goes on through what happens: whoever starts its trainer again, and what is left of it."""

import os
import threading
import time
from contextlib import suppress

from services.local import LocalService
from soak.processes import CommandProcess, Footprint
from soak.verdict import Growth
from trainer import checkpoints
from trainer.errors import CheckpointError
from trainer.metrics_file import FILE_NAME, read_lines

AGAIN = 75
POLL_S, LONGEST_S = 0.1, 120.0
WARM_STEPS = 3
"""Of a process, before its memory is looked at."""
POLICY, RUN, CHECKPOINTS = "trained-policy", "runs/soak", "checkpoints"
CONFIG = """
[run]
name = "soak"
directory = "{folder}/runs"
seed = 5
threads = 1
checkpoint_every = 1
[model]
path = "{folder}/sft"
dtype = "float32"
[critic]
path = "{folder}/reward"
dtype = "float32"
[services]
policy = ["{policy}"]
reference = "{reference}"
reward = "{reward}"
connect_timeout = 60
call_timeout = 5
patience = 5
[data]
prompts = "{folder}/prompts.jsonl"
[sampling]
response_length = 6
request_size = 3
collect_size = 3
[ppo]
total_episodes = 600_000
batch_size = 6
num_mini_batches = 2
num_ppo_epochs = 1
missing_eos = "none"
"""


class TrainerProcess(CommandProcess):
    """Of the configuration that stands as the model."""

    def command(self):
        return ["trainer", "ppo", self.service.model, "--resume", "--exit-with-parent", str(os.getpid())]


class Learner:
    """The trainer of a site: it is stopped and killed as services are, and its line is the one to its policy.

    Where it gives up with 75 it is started again.
    """

    name = "trainer"

    def __init__(self, site, folder):
        at = {name: site.services[name].proxy.address for name in ("reward", "reference")}
        self.proxy = site.services[POLICY].proxy
        config = folder / "ppo.toml"
        config.write_text(CONFIG.format(folder=folder, policy=self.proxy.address, **at))
        self._wanted, self._folder = LocalService("trainer", str(config)), folder
        self._lock, self._over = threading.RLock(), threading.Event()
        self.gave_up, self.starts, self.problems = 0, 0, []
        self.start()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    @property
    def step(self):
        """Of its newest checkpoint."""
        return newest_step(self._folder / RUN / CHECKPOINTS)

    def start(self):
        with self._lock:
            self._process, self._is_away = TrainerProcess(self._wanted, self._folder), False
            self.starts, self._warm, self._begun_at = self.starts + 1, None, self.step

    def signal(self, number):
        with self._lock, suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    def kill(self):
        """It stays away until `start`."""
        with self._lock:
            self._is_away = True
            self._process.kill()

    def goes_on(self):
        """Whether it takes a step from now on, and some since it was started; waits for it."""
        end, now = time.monotonic() + LONGEST_S, self.step
        while not self.problems and time.monotonic() < end:
            if self._warm is not None and self.step > now:
                return True
            time.sleep(POLL_S)
        return False

    def _keep(self):
        while not self._over.wait(POLL_S):
            with self._lock:
                code = None if self._is_away else self._process.ended()
                if code is None and self._warm is None and self.step >= self._begun_at + WARM_STEPS:
                    with suppress(OSError):  # it has just ended
                        self._warm = Footprint.of(self._process.pid)
                elif code == AGAIN:
                    self.gave_up += 1
                    self.start()
                elif code is not None:
                    self.problems.append(f"trainer: ended with {code}; {self._process.last_words()}")
                    return

    def end(self):
        """Stops it when it has gone on after the last fault; gives its growths since it was warm, and what is
        wrong."""
        if not self.goes_on():
            return [], [*self.problems, f"trainer: it takes no steps; {self._process.last_words()}"]
        self._over.set()
        self._keeper.join(LONGEST_S)
        growth = Growth(self.name, self._warm, Footprint.of(self._process.pid))
        self._process.terminate()
        code = self._process.wait_ended(time.monotonic() + LONGEST_S)
        problems = [*self.problems, *of_outputs(self._folder / RUN)]
        if code != AGAIN:
            problems.append(f"trainer: SIGTERM ended it with {code}; {self._process.last_words()}")
        return [growth], problems

    def told(self):
        """What it did, in a line."""
        return (f"a PPO run of {self.step} steps, one checkpoint each: its trainer was started "
                f"{self.starts} times, {self.gave_up} of them after it had given up with 75")  # fmt: skip

    def close(self):
        """At once."""
        self._over.set()
        self._keeper.join(LONGEST_S)
        self._process.kill()


def newest_step(folder):
    """Of the checkpoints there; 0 without one."""
    return max(map(checkpoints.step_of, folder.glob("step-*")), default=0)


def of_outputs(run):
    """Problems with what a stopped run has left."""
    newest = newest_step(run / CHECKPOINTS)
    try:
        whole = checkpoints.latest_whole(run / CHECKPOINTS)
    except CheckpointError:
        whole = None
    if whole is None or checkpoints.step_of(whole) != newest:
        yield f"trainer: its newest checkpoint, of step {newest}, isn't whole"
    steps = {line["step"] for line in read_lines(run / FILE_NAME)}
    if missing := set(range(1, newest + 1)) - steps:
        yield f"trainer: {FILE_NAME} is without {len(missing)} of {newest} steps"
