"""Requests that wait for their turn: bounded, first come, first served."""

import time
from dataclasses import dataclass, field

from services.batching import WAITING_CALLS, CallLimits
from services.errors import Overloaded
from services.policy.interface import Generation


@dataclass(frozen=True)
class Waiting:
    """A request in the queue."""

    generation: Generation
    since: float = field(default_factory=time.monotonic)


class RequestQueue:
    """Counts every request from its arrival to its end, and hands out those that may share a batch."""

    def __init__(self, limits: CallLimits) -> None:
        """Holds a few calls of the largest size."""
        self._max_items = WAITING_CALLS * limits.max_items
        self._max_tokens = WAITING_CALLS * limits.max_tokens
        self._waiting: list[Waiting] = []
        self.waiting_items = 0
        """Responses that wait or grow."""
        self.waiting_tokens = 0
        """Tokens of them and their prompts, at most."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def generations(self) -> list[Generation]:
        """Those that wait, oldest first."""
        return [waiting.generation for waiting in self._waiting]

    def admit(self, generation: Generation) -> None:
        """Puts a request at the end. Raises Overloaded."""
        request = generation.request
        items = self.waiting_items + request.sequences
        tokens = self.waiting_tokens + request.tokens
        if items > self._max_items or tokens > self._max_tokens:
            raise Overloaded(
                f"{self.waiting_items} responses, {self.waiting_tokens} tokens wait already; try again later"
            )
        self.waiting_items, self.waiting_tokens = items, tokens
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

    def release(self, generation: Generation) -> None:
        """The request has ended, wherever it was."""
        self._waiting = [waiting for waiting in self._waiting if waiting.generation is not generation]
        self.waiting_items -= generation.request.sequences
        self.waiting_tokens -= generation.request.tokens

    def _companions(self, first: Waiting, room: int) -> list[Waiting]:
        found = []
        for waiting in self._waiting[1:]:
            request = waiting.generation.request
            alike = request.sampling == first.generation.request.sampling and not request.deterministic
            if alike and request.sequences <= room:
                found.append(waiting)
                room -= request.sequences
        return found
