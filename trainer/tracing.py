"""Spans of a run. Without a tracer in the process, which services.rpc.tracing starts, they cost nothing."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

from opentelemetry import trace

Arguments = ParamSpec("Arguments")
ResultT = TypeVar("ResultT")


@contextmanager
def span(name: str, **attributes: str | int) -> Iterator[None]:
    """A part of what is under way in this thread, as a block or a decorator."""
    named = {f"plaudit.{key}": value for key, value in attributes.items()}
    with trace.get_tracer("plaudit.trainer").start_as_current_span(name, attributes=named):
        yield


def submit(
    pool: Executor,
    work: Callable[Arguments, ResultT],
    *args: Arguments.args,
    **kwargs: Arguments.kwargs,
) -> Future[ResultT]:
    """As `pool.submit`; the spans of `work` are parts of the caller's."""
    return pool.submit(copy_context().run, partial(work, *args, **kwargs))
