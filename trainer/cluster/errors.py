"""What can end the deploy tool, and its exit codes, which go on where the trainer's table ends.

TrainerError           70
├── ConfigError        64  the run's TOML, or --context
└── ClusterError       70
    ├── Misused        64  what is asked for can't be done as things stand; says what to do first
    ├── ApiUnreachable 69  nobody answers, or not in time, or only that it can't now
    ├── ApiRefused     70  the API server said no
    │   ├── NotThere   70  the object isn't there
    │   ├── Changed    70  somebody has created or changed the object in the meantime
    │   ├── NotAllowed 77  the account may not do it: which verb, which resource
    │   └── FieldsTaken 64 another field manager has set what was to be set
    ├── WorkloadFailed 70  the reasons, as the cluster tells them
    └── TimedOut       75  still on its way; wait again
"""

from collections.abc import Sequence

from trainer.errors import TrainerError


class ClusterError(TrainerError):
    """Root of what is said about a cluster."""


class Misused(ClusterError):
    """What is asked for can't be done as things stand; the message says what to do first."""

    exit_code = 64


class ApiUnreachable(ClusterError):
    """The API server doesn't answer, or not in time, or only that it can't now."""

    exit_code = 69


class ApiRefused(ClusterError):
    """The API server said no."""


class NotThere(ApiRefused):
    """The object, or its namespace, isn't there."""


class Changed(ApiRefused):
    """Somebody has created or changed the object since it was read."""


class NotAllowed(ApiRefused):
    """The account may not do it; the message names verb and resource."""

    exit_code = 77


class FieldsTaken(ApiRefused):
    """Another field manager has set what was to be set; the message names managers, fields and the fix."""

    exit_code = 64


class WorkloadFailed(ClusterError):
    """A workload will not come up by itself; `reasons` as the cluster tells them."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("\n".join(reasons))
        self.reasons = tuple(reasons)


class TimedOut(ClusterError):
    """Not there yet, and nothing says that it won't be."""

    exit_code = 75
