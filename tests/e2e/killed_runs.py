"""PPO runs whose processes are killed and started again.

Each process is `python -m MODULE …`, forked from one that has imported torch: it is up in a fraction of a
second, and has an id, a memory and an end of its own.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from pathlib import Path

from chaos import play
from chaos_proxy import ChaosProxy
from fault_schedule import Scene

from plaudit import PolicyClient
from trainer import checkpoints
from trainer.metrics_file import FILE_NAME, read_lines
from trainer.ppo import products
from trainer.ppo.patience import Endpoint, Patience

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([
    "trainer.ppo.run", "matplotlib.figure", "transformers.models.llama.modeling_llama",
    "services.policy.service", "services.policy.model", "services.policy.engine", "services.policy.weights",
    "services.reference.service", "services.reference.engine", "services.reward.service",
    "services.reward.models", "services.reward.engine",
])  # fmt: skip
LONGEST_S = 60.0
POLL_S = 0.01
PROMPTS = ["the film", "a dull", "what a", "not worth", "the story", "lifeless", "seeing", "good"]
TRAINER, POLICIES = "trainer", ("policy-0", "policy-1")
LINES = {"policy": POLICIES[0], "reward": "reward", "reference": "reference"}
"""What lines are called, and where they lead."""
AGAIN, MOST_STARTS = 75, 20
CLOCK = ("push_bytes", "time", "eps", "seconds_per_step", "tokens_per_second")


@dataclass(frozen=True)
class Death:
    """SIGKILL by its own hand, right before the `call`-th call of `function`: "module:Class.name" or so.

    Or another signal, as SIGSTOP, after which it may go on.
    """

    function: str
    call: int = 1
    by: int = signal.SIGKILL

    def arm(self) -> None:
        calls = []

        def die():
            calls.append(self.function)
            if len(calls) == self.call:
                os.kill(os.getpid(), self.by)

        before(self.function, die)


def before(function: str, act: Callable[[], None]) -> None:
    """From now on `act` is called right before every call of "module:Class.name" or so."""
    module, _, path = function.partition(":")
    owner = import_module(module)
    *classes, name = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    called = getattr(owner, name)

    @wraps(called)
    def after_it(*arguments, **options):
        act()
        return called(*arguments, **options)

    setattr(owner, name, after_it)


def become(module: str, arguments: list[str], log: Path, death: Death | None) -> None:
    """Turns a forked process into `python -m module arguments`."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    products.build_report = lambda *_, **__: None  # its curves take two seconds to draw
    if death:
        death.arm()
    sys.argv = [module, *arguments, "--exit-with-parent", str(os.getppid())]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


class Command:
    """One of the run's processes, which can be killed and started again."""

    def __init__(self, module: str, arguments: list[str], log: Path) -> None:
        self.module, self.arguments, self.log = module, arguments, log
        self._process = None

    def start(self, death: Death | None = None) -> None:
        self._process = FORKS.Process(target=become, args=(self.module, self.arguments, self.log, death))
        self._process.start()

    def start_if_dead(self) -> None:
        if self._process is None or self._process.exitcode is not None:
            self.start()

    def ended(self, within: float) -> int | None:
        """Its exit code; None if it still runs after so many seconds."""
        self._process.join(within)
        return self._process.exitcode

    def kill(self) -> None:
        """At once, whatever it does; nothing if it wasn't started or has ended."""
        if self._process:
            self._process.kill()
            self._process.join()

    def go_on(self) -> None:
        """After SIGSTOP."""
        os.kill(self._process.pid, signal.SIGCONT)

    def said(self, words: str) -> str:
        """The first line of its log with these words, once it is there."""
        end = time.monotonic() + LONGEST_S
        while time.monotonic() < end:
            has_ended = self.ended(POLL_S) is not None
            for line in self.log.read_text().splitlines() if self.log.exists() else ():
                if words in line:
                    return line
            if has_ended:
                break
        raise TimeoutError(self.last_words())

    def last_words(self) -> str:
        return "\n".join(self.log.read_text().splitlines()[-15:])


class ServiceCommand(Command):
    """A service; it comes back at the address that it had."""

    def __init__(self, kind: str, model: Path, log: Path) -> None:
        options = ["--model", str(model), "--dtype", "float32", "--device", "cpu", "--threads", "1"]
        super().__init__(f"services.{kind}", [*options, "--address", "127.0.0.1:0"], log)

    def listen(self) -> str:
        """HOST:PORT."""
        self.arguments[-1] = self.said("listening on ").split()[-1]
        return self.arguments[-1]


class Site:
    """A policy with two replicas, a reward and a reference, and the runs that use them."""

    def __init__(self, folder: Path, policy: Path, reward: Path) -> None:
        self.folder = folder
        models = {POLICIES[0]: policy, POLICIES[1]: policy, "reference": policy, "reward": reward}
        self.services = {
            name: ServiceCommand(name.partition("-")[0], model, folder / f"{name}.log")
            for name, model in models.items()
        }
        for service in self.services.values():
            service.start()
        self._addresses = {name: service.listen() for name, service in self.services.items()}
        text = "\n".join(json.dumps({"prompt": prompt}) for prompt in PROMPTS)
        for file in ("prompts", "heldout"):
            (folder / f"{file}.jsonl").write_text(text)
        at = {f"{name.replace('-', '_')}_at": address for name, address in self._addresses.items()}
        config = CONFIG.format(folder=folder, policy=policy, reward=reward, longest=LONGEST_S, **at)
        (folder / "ppo.toml").write_text(config)

    def __enter__(self) -> "Site":
        return self

    def __exit__(self, *exception: object) -> None:
        for service in self.services.values():
            service.kill()

    def run(
        self,
        name: str,
        replicas: int,
        kills: Sequence[tuple[str, float]] = (),
        deaths: Sequence[Mapping[str, Death]] = (),
    ) -> dict[str, str]:
        """Runs to the end; gives `digest` of what is left.

        `kills` are processes in their order, each with the seconds since the one before; `deaths` come by
        themselves, round by round. Who has died is started again with the same command.
        """
        addresses = json.dumps([self._addresses[policy] for policy in POLICIES[:replicas]])
        trainer = self._trainer(name, {"policy": addresses})
        processes = {**self.services, TRAINER: trainer}
        try:
            for victims in deaths:
                self._die(processes, victims)
            trainer.start_if_dead()
            for victim, seconds in kills:
                trainer.ended(seconds)
                processes[victim].kill()
                processes[victim].start()
            code = trainer.ended(LONGEST_S)
            assert code == 0, f"{code}: {trainer.last_words()}"
        finally:
            trainer.kill()
        return digest(self.folder / name / "run")

    def wait_ready(self, policy: str) -> str:
        """Waits until a policy answers, and gives its address."""
        address = self._addresses[policy]
        with PolicyClient(address) as client:
            Patience(LONGEST_S).call(Endpoint(policy, address, policy), client.get_policy)
        return address

    def run_past(
        self, name: str, victim: str, stop: Death, **times: float
    ) -> tuple[dict[str, str], str, str]:
        """Runs to the end though a service is stopped; it goes on once the trainer says that it waits.

        Gives `digest` of what is left, and the trainer's log line and metrics of the wait. `times` as below.
        """
        service = self.services[victim]
        service.kill()
        service.start(stop)
        trainer = self._trainer(name, {"policy": json.dumps([self._addresses[POLICIES[0]]]), **times})
        trainer.arguments += ["--metrics-address", "127.0.0.1:0"]
        try:
            trainer.start()
            waits = trainer.said("trying for another")
            address = trainer.said("metrics on ").split()[-1]
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=LONGEST_S) as answer:
                metrics = answer.read().decode()
            service.go_on()
            code = trainer.ended(LONGEST_S)
            assert code == 0, f"{code}: {trainer.last_words()}"
        finally:
            trainer.kill()
            service.go_on()
        return digest(self.folder / name / "run"), waits, metrics

    def run_over(self, name: str, schedule: Sequence[Scene], **times: float) -> dict[str, str]:
        """Runs over lines that fail on schedule to the end, and gives `digest` of what is left.

        A trainer that gives up with 75 is started again; whatever else ends it is an error. `times` are of
        [services]: call_timeout, patience.
        """
        with contextlib.ExitStack() as stack:
            lines = {
                name: stack.enter_context(ChaosProxy(self._addresses[end])) for name, end in LINES.items()
            }
            at = {name: line.address for name, line in lines.items()}
            over = threading.Event()
            player = threading.Thread(target=play, args=(schedule, lines, over))
            trainer = self._trainer(name, {**at, "policy": json.dumps([at["policy"]]), **times})
            stack.callback(trainer.kill)
            stack.callback(player.join)
            stack.callback(over.set)
            player.start()
            codes = []
            while not codes or (codes[-1] == AGAIN and len(codes) < MOST_STARTS):
                trainer.start()
                codes.append(trainer.ended(LONGEST_S))
            assert codes[-1] == 0, f"{codes}: {trainer.last_words()}"
        return digest(self.folder / name / "run", gave_up=AGAIN in codes)

    def _die(self, processes: Mapping[str, Command], victims: Mapping[str, Death]) -> None:
        """One round: whoever is to die starts anew, prepared for it; services start again afterwards."""
        for victim, death in victims.items():
            processes[victim].kill()
            processes[victim].start(death)
        processes[TRAINER].start_if_dead()
        for victim in victims:
            assert processes[victim].ended(LONGEST_S) == -signal.SIGKILL, processes[victim].last_words()
        for victim in victims.keys() - {TRAINER}:
            processes[victim].start()

    def _trainer(self, name: str, services: Mapping[str, object]) -> Command:
        """The command of a run, whose files go to `folder`/`name`/run, with these settings of [services]."""
        settings = {"run.directory": self.folder / name, **{f"services.{k}": v for k, v in services.items()}}
        options = [option for key, value in settings.items() for option in ("--set", f"{key}={value}")]
        arguments = ["ppo", str(self.folder / "ppo.toml"), "--resume", *options]
        return Command("trainer", arguments, self.folder / f"{name}.log")


CONFIG = """
[run]
name = "run"
seed = 5
threads = 1
checkpoint_every = 1
[model]
path = "{policy}"
dtype = "float32"
[critic]
path = "{reward}"
dtype = "float32"
learning_rate = 1e-3
[services]
policy = ["{policy_0_at}"]
reference = "{reference_at}"
reward = "{reward_at}"
connect_timeout = {longest}
patience = {longest}
[data]
prompts = "{folder}/prompts.jsonl"
[sampling]
response_length = 6
request_size = 3
collect_size = 3
[ppo]
total_episodes = 24
batch_size = 6
num_mini_batches = 2
num_ppo_epochs = 2
learning_rate = 1e-3
adap_kl_ctrl = true
horizon = 50.0
missing_eos = "none"
ema_decay = 0.9
[evaluation]
prompts = "{folder}/heldout.jsonl"
every = 2
keep_best = true
"""


def digest(run: Path, gave_up: bool = False) -> dict[str, str]:
    """What must be equal: weights that are shipped, all of the last checkpoint, evaluations, and metrics.

    A run that `gave_up` while a step was judged has two lines of that step, which count as one.
    """
    newest = checkpoints.latest_whole(run / "checkpoints")
    weights = [*run.glob("policy*/model.safetensors"), *run.glob("best/model.safetensors")]
    files = [*weights, *run.glob("evaluations/*"), newest / "manifest.json"]
    found = {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    lines = [_without_clock(line) for line in read_lines(run / FILE_NAME)]
    if gave_up:
        lines = _one_a_step(lines)
    return found | {FILE_NAME: json.dumps(lines, sort_keys=True)}


def _one_a_step(lines: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    steps: dict[object, dict[str, object]] = {}
    for line in lines:
        steps.setdefault(line["step"], {}).update(line)
    return list(steps.values())


def _without_clock(line: Mapping[str, object]) -> dict[str, object]:
    """Without what hangs on time, and on how many replicas are pushed to."""
    return {name: value for name, value in line.items() if name not in CLOCK and not name.startswith("time/")}
