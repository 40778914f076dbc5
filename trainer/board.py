"""What a run tells about itself: written by the training loop, read by TrainerService in another thread."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

Stage = Literal["sft", "reward_model", "ppo"]
State = Literal["starting", "running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Status:
    """A run at one moment."""

    run_id: str
    """Names this start of the run; a resumed run has another, since it may go back to an earlier step."""
    stage: Stage | None = None
    """None until the stage is known."""
    state: State = "starting"
    step: int = 0
    total_steps: int = 0
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    last_step_at: datetime | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    checkpoint: str = ""
    """Newest whole one; empty before the first."""
    error: str = ""


class Board:
    """Holds the newest status. Safe to use from any thread."""

    def __init__(self, run_id: str) -> None:
        self._status = Status(run_id)
        self._lock = threading.Lock()

    @property
    def status(self) -> Status:
        """As it is now; never changes afterwards."""
        return self._status

    def tell(self, **changes: Any) -> None:  # noqa: ANN401  (each field has its own type)
        """Replaces fields of the status."""
        with self._lock:
            self._status = replace(self._status, **changes)
