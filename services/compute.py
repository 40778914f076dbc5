"""One compute thread per model, so that torch never runs on the event loop: asyncio and threading only."""

import asyncio
import contextlib
import contextvars
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, TypeVarTuple

from services.errors import NotServing, Overloaded, TooLate

T = TypeVar("T")
Args = TypeVarTuple("Args")


class CancelFlag:
    """Tells running work that nobody waits for its result; long work looks at it between steps."""

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        """Asks the work to stop; safe from any thread."""
        self._set = True

    def is_set(self) -> bool:
        """Whether the work should stop."""
        return self._set


@dataclass(eq=False)
class _Job:
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    cancel: CancelFlag
    deadline: float | None
    future: asyncio.Future[Any]
    context: contextvars.Context = field(default_factory=contextvars.copy_context)


class ComputeThread:
    """Runs functions one after the other in a thread of its own, first come, first served.

    It is a daemon: a load that hangs doesn't keep the process alive. All methods but the functions
    it runs belong to one event loop.
    """

    def __init__(self, name: str, max_waiting: int = 64) -> None:
        """`max_waiting` bounds the functions that run or wait to."""
        self._max_waiting = max_waiting
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._unfinished: set[_Job] = set()
        self._closed = False
        threading.Thread(target=self._work, name=name, daemon=True).start()

    @property
    def waiting(self) -> int:
        """Functions that run or wait to."""
        return len(self._unfinished)

    async def run(
        self,
        fn: Callable[[*Args], T],
        *args: *Args,
        cancel: CancelFlag | None = None,
        deadline: float | None = None,
    ) -> T:
        """Awaits `fn(*args)` in the thread.

        When the awaiting task is cancelled (a caller's cancel or deadline), `cancel` is set and this
        raises at once; a function that hasn't begun never does. `deadline` is a `time.monotonic()`
        after which it isn't begun either. Raises Overloaded, TooLate, NotServing, and what `fn` raises.
        """
        if self._closed:
            raise NotServing("the server is shutting down")
        if len(self._unfinished) >= self._max_waiting:
            raise Overloaded(f"{len(self._unfinished)} requests wait already; try again later")
        flag = cancel or CancelFlag()
        job = self._put(fn, args, flag, deadline)
        try:
            return await job.future  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            flag.set()
            raise

    async def close(self) -> None:
        """Asks what runs to stop, refuses what waits, and returns when the thread has ended."""
        self._closed = True
        for job in self._unfinished:
            job.cancel.set()
        last = self._put(lambda: None, (), CancelFlag(), None)
        self._jobs.put(None)
        await last.future

    def _put(
        self, fn: Callable[..., Any], args: tuple[Any, ...], cancel: CancelFlag, deadline: float | None
    ) -> _Job:
        job = _Job(fn, args, cancel, deadline, asyncio.get_running_loop().create_future())
        self._unfinished.add(job)
        self._jobs.put(job)
        return job

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            result, error = _run(job)
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
                job.future.get_loop().call_soon_threadsafe(self._finish, job, result, error)
            del job, result, error  # not kept until the next comes: a push's weights are gigabytes

    def _finish(self, job: _Job, result: object, error: BaseException | None) -> None:
        self._unfinished.discard(job)
        if job.future.done():
            return
        if error is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(error)


def _run(job: _Job) -> tuple[Any, BaseException | None]:
    if job.cancel.is_set():
        return None, NotServing("the server is shutting down")
    if job.deadline is not None and time.monotonic() >= job.deadline:
        return None, TooLate("the deadline passed while the request waited for its turn")
    try:
        return job.context.run(job.fn, *job.args), None
    except StopIteration as error:  # a future can't hold it
        return None, RuntimeError(f"StopIteration: {error}")
    except BaseException as error:
        return None, error
