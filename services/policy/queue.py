"""Requests that wait for their turn: bounded, first come, first served."""

import time
from dataclasses import dataclass, field

from services.batching import CallLimits, room_for
from services.policy.interface import Generation
from services.room import HasRoom


@dataclass(frozen=True)
class Waiting:
    """A request in the queue."""

    generation: Generation
    since: float = field(default_factory=time.monotonic)


class RequestQueue(HasRoom):
    """Counts every request from its arrival to its end, and hands out those that may share a batch."""

    def __init__(self, limits: CallLimits) -> None:
        """Holds a few calls of the largest size."""
        self.room = room_for(limits)
        self._waiting: list[Waiting] = []

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def generations(self) -> list[Generation]:
        """Those that wait, oldest first."""
        return [waiting.generation for waiting in self._waiting]

    def admit(self, generation: Generation) -> None:
        """Puts a request at the end. Raises Overloaded."""
        request = generation.request
        self.room.take(request.sequences, request.tokens, request.size)
        self._waiting.append(Waiting(generation))

    def take(self, rows: int) -> list[Waiting]:
        """Takes the oldest, with others that draw alike up to `rows` responses.

        A deterministic request comes alone: its bits must not depend on who waits beside it.
        """
        first = self._waiting[0]
        taken = [first]
        if not first.generation.request.deterministic:
            taken += self._companions(first, rows - first.generation.request.sequences)
        self._waiting = [waiting for waiting in self._waiting if waiting not in taken]
        return taken

    def release(self, generation: Generation, answered: bool = True) -> None:
        """The request has ended, wherever it was; not `answered`, it says nothing of how fast others are."""
        self._waiting = [waiting for waiting in self._waiting if waiting.generation is not generation]
        request = generation.request
        self.room.release(request.sequences, request.tokens, request.size, answered=answered)

    def _companions(self, first: Waiting, room: int) -> list[Waiting]:
        found = []
        for waiting in self._waiting[1:]:
            request = waiting.generation.request
            alike = request.sampling == first.generation.request.sampling and not request.deterministic
            if alike and request.sequences <= room:
                found.append(waiting)
                room -= request.sequences
        return found
