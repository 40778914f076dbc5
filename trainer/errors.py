"""What can end a stage, and the exit code of `python -m trainer` that tells about it.

    TrainerError           70  internal
    ├── ConfigError        64  the configuration is wrong; lists every problem
    ├── DataError          64  a data file is wrong; names file, line, field and the fix
    ├── ServiceUnreachable 69  a service can't be reached, or doesn't answer in time
    │   └── ServiceAway    75  one that was there stayed away too long; start again with --resume
    ├── JudgeError         64  a judge can't be loaded, or fails (trainer.evaluate.plugins)
    ├── RewardMissing      70  rewards could not be had (trainer.ppo.collect)
    ├── WrongWeights       70  a service answers with other weights than it must (trainer.ppo.run)
    ├── NotFinite          70  losses or gradients stay NaN or infinite
    ├── CheckpointError    70  a checkpoint can't be read
    ├── RunHeld            75  another process has the run's folder or policy; start again when it has ended
    ├── DiskUnusable       75  the disk was full or read-only for too long; start again when it is mended
    └── Stopped            75  stopped by SIGTERM after a checkpoint; start again with --resume
        └── StoppedByCall   0  stopped by StopRun after a checkpoint, as somebody wished

Ctrl-C is KeyboardInterrupt: 130.
"""

from collections.abc import Sequence
from typing import ClassVar


class TrainerError(Exception):
    """Root of everything a stage reports on purpose."""

    exit_code: ClassVar[int] = 70
    resumable: ClassVar[bool] = False
    """Whether the weights are sound when a step raises it, so that they are worth a checkpoint."""


class ConfigError(TrainerError):
    """The configuration is wrong. `problems` are lines of the form "section.key: what and how to fix it"."""

    exit_code = 64

    def __init__(self, problems: Sequence[str], source: str = "") -> None:
        where = f"{source}: " if source else ""
        super().__init__(where + "; ".join(problems))
        self.problems = tuple(problems)
        self.source = source

    @classmethod
    def at(cls, key: str, description: str) -> "ConfigError":
        """The common case of one key."""
        return cls([f"{key}: {description}"])


class DataError(TrainerError):
    """A data file is wrong; the message names file, line, field and the fix."""

    exit_code = 64


class ServiceUnreachable(TrainerError):
    """A service can't be reached; the message names it, its address and its configuration key."""

    exit_code = 69
    resumable = True


class ServiceAway(ServiceUnreachable):
    """A service that the run had begun with stayed away for longer than the run waits."""

    exit_code = 75


class NotFinite(TrainerError):
    """Losses or gradients are NaN or infinite and skipping did not help."""


class CheckpointError(TrainerError):
    """A checkpoint is damaged or lacks a part."""


class DiskUnusable(TrainerError):
    """The disk didn't take what was to be written, for too long; the message says what to do."""

    exit_code = 75


class RunHeld(TrainerError):
    """Another process writes to the run's folder, or drives its policy; the message says which."""

    exit_code = 75


class Stopped(TrainerError):
    """Stopped on request; everything needed to go on is in the newest checkpoint."""

    exit_code = 75
    resumable = True


class StoppedByCall(Stopped):
    """Somebody asked TrainerService to stop the run: nothing is to start it again by itself."""

    exit_code = 0
