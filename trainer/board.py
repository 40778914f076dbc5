"""What a run tells about itself: written by the training loop, read by TrainerService in another thread."""

import threading
from collections import deque
from collections.abc import Callable, Mapping
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


EVENTS_KEPT = 512


class Board:
    """Holds the newest status, and the last ones before it by number. Safe to use from any thread."""

    def __init__(self, run_id: str) -> None:
        self._status = Status(run_id)
        self._lock = threading.Lock()
        self._count = 0
        self._events: deque[tuple[int, Status]] = deque(maxlen=EVENTS_KEPT)
        self._watchers: set[Callable[[], None]] = set()

    @property
    def status(self) -> Status:
        """As it is now; never changes afterwards."""
        return self._status

    def tell(self, **changes: Any) -> None:  # noqa: ANN401  (each field has its own type)
        """Replaces fields of the status, which is an event."""
        with self._lock:
            self._status = replace(self._status, **changes)
            self._count += 1
            self._events.append((self._count, self._status))
            watchers = list(self._watchers)
        for told in watchers:
            told()

    def events(self, after: int) -> list[tuple[int, Status]]:
        """(number, status after it) of the events after that number, as far as they are kept."""
        with self._lock:
            return [event for event in self._events if event[0] > after]

    def watch(self, told: Callable[[], None]) -> Callable[[], None]:
        """Calls `told` after each event, in the thread that told it; returns what ends that."""
        with self._lock:
            self._watchers.add(told)
        return lambda: self._watchers.discard(told)
