"""The parts of the quickstart, each a process of its own, started as a person would start it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import assets

from services.local import LocalService, LocalServices, local_services
from trainer.outputs import read_json, write_json

HERE = Path(__file__).resolve().parent
STAGES = ("sft", "reward-model", "ppo", "evaluate")
SETTLE_S = 60.0
"""How long a stopped stage gets to end: a PPO step is finished and kept first."""


class StageFailed(Exception):
    """A stage ended early and said why on standard error; its exit code is handed on."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Stages:
    """Everything of one seed: what is finished isn't done again, the rest goes on where it was."""

    folder: Path
    """runs/quickstart, or that of another seed."""
    cache: Path
    seed: int
    overrides: Sequence[tuple[str, str]] = ()
    """(stage, "section.key=value") of the command line; they win."""
    seconds: dict[str, float] = field(init=False)
    """Computing time of each part, over all starts."""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.seconds = read_json(self._clock)

    @property
    def _clock(self) -> Path:
        return self.folder / "seconds.json"

    @property
    def judge(self) -> Path:
        """The trained judge, the same for every seed."""
        return self.cache / "judge"

    def train_judge(self, data: Path) -> None:
        """MiniLM learns how positive rater half B finds the judge's sentences."""
        body = assets.judge_body_folder(self.cache)
        with self.timed("judge"):
            _run(
                sys.executable,
                str(HERE / "judge.py"),
                str(data),
                str(body),
                str(self.judge),
                str(os.getpid()),
            )

    def sft(self, data: Path, model: Path) -> None:
        """Stage 1."""
        if self._finished("sft"):
            return
        self._trainer("sft", {"model.path": model, **_files(data, SFT_DATA)})
        self._link("sft", "stages/sft/policy")

    def reward_model(self, data: Path, ceiling: float) -> None:
        """Stage 2, from the model of stage 1."""
        if self._finished("reward-model"):
            return
        settings = {"model.path": self.folder / "sft", "reward_model.human_ceiling": ceiling}
        self._trainer("reward-model", {**settings, **_files(data, REWARD_DATA)})
        self._link("reward", "stages/reward-model/reward")

    def ppo(self, data: Path) -> None:
        """Stage 3, against services that live as long as it does."""
        if self._finished("ppo"):
            return
        with self.services("sft") as services:
            self._trainer(
                "ppo",
                {
                    "model.path": self.folder / "sft",
                    "critic.path": self.folder / "reward",
                    "services.policy": f'["{services["policy"].address}"]',
                    "services.reference": services["reference"].address,
                    "services.reward": services["reward"].address,
                    **_files(data, PPO_DATA),
                },
            )

    def evaluate(self, data: Path) -> None:
        """PPO against SFT, on prompts that nothing was picked on."""
        if self._finished("evaluate"):
            return
        self._trainer(
            "evaluate",
            {
                "a.path": self.folder / "sft",
                "b.path": self.folder / "policy",
                "judges.judge.options.folder": self.judge,
                "judges.reward.path": self.folder / "reward",
                **_files(data, EVALUATION_DATA),
            },
        )

    def services(self, policy: str) -> AbstractContextManager[LocalServices]:
        """The three services, each a process; `policy` is the model that the policy service starts from."""
        models = {"policy": policy, "reference": "sft", "reward": "reward"}
        return local_services(
            [LocalService(kind, str(self.folder / model)) for kind, model in models.items()],
            self.folder / "logs",
        )

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds what the block takes to `seconds`, however it ends."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - start
            write_json(self._clock, self.seconds)

    def _finished(self, stage: str) -> bool:
        """Whether its last file is there, and its link; says so, since settings have no effect then."""
        done = (self.folder / LAST_FILES[stage]).exists() and (self.folder / LINKS.get(stage, "")).exists()
        if done:
            print(f"{stage} has finished already", flush=True)
        return done

    def _trainer(self, stage: str, settings: Mapping[str, object]) -> None:
        place = {"run.directory": self.folder / "stages", "run.seed": self.seed}
        if stage == "ppo":  # its run is the quickstart's own folder
            place |= {"run.directory": self.folder.parent, "run.name": self.folder.name}
        assigned = [f"{key}={value}" for key, value in {**place, **settings}.items()]
        assigned += [override for of, override in self.overrides if of == stage]
        options = [part for each in assigned for part in ("--set", each)]
        options += ["--resume"] if stage != "evaluate" else []
        with self.timed(stage):
            _run(sys.executable, "-m", "trainer", stage, str(HERE / f"{stage}.toml"), *options,
                 "--exit-with-parent", str(os.getpid()))  # fmt: skip

    def _link(self, name: str, target: str) -> None:
        link = self.folder / name
        if not link.is_symlink():
            link.symlink_to(target, target_is_directory=True)


LAST_FILES = {
    "sft": "stages/sft/evaluation.json",
    "reward-model": "stages/reward-model/evaluation.json",
    "ppo": "run.json",
    "evaluate": "stages/evaluate/evaluation.json",
}
"""What each stage writes when all else is there."""
LINKS = {"sft": "sft", "reward-model": "reward"}
"""To the model of a stage, in the quickstart's own folder."""
SFT_DATA = {"train": "demonstrations", "validation": "demonstrations_validation"}
REWARD_DATA = {
    "train": "rankings",
    "validation": "rankings_heldout",
    "heldout_labelers": "rankings_heldout_labelers",
    "demonstrations": "demonstrations_validation",
}
PPO_DATA = {"data.prompts": "prompts", "evaluation.prompts": "prompts_tuning"}
EVALUATION_DATA = {"prompts": "prompts_final"}


def _files(data: Path, names: Mapping[str, str]) -> dict[str, Path]:
    """Configuration keys and the data files they name; a key without a section is of [data]."""
    return {key if "." in key else f"data.{key}": data / f"{name}.jsonl" for key, name in names.items()}


def _run(*command: str) -> None:
    """Runs a process to its end; when we are stopped it is, too. Raises StageFailed."""
    process = subprocess.Popen(command)
    try:
        code = process.wait()
    except KeyboardInterrupt:  # the terminal told the process, too
        _settle(process)
        raise
    except BaseException:
        process.terminate()
        _settle(process)
        raise
    if code < 0:
        why = "; most likely it needed more memory than there is for it" if code == -signal.SIGKILL else ""
        print(f"killed by signal {-code}{why}: {' '.join(command[1:4])} …", file=sys.stderr)
        code = 128 - code  # as a shell says it
    if code:
        raise StageFailed(code)


def _settle(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(SETTLE_S)
    except BaseException:
        process.kill()
        process.wait()
