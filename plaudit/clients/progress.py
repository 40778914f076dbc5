"""A progress bar over results that stream in."""

from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sized
from contextlib import aclosing, closing, contextmanager
from typing import TypeVar

from plaudit.clients.errors import ItemFailure

ResultT = TypeVar("ResultT")


def watched(
    results: Generator[ResultT, None, None], items: object, shown: bool
) -> Generator[ResultT, None, None]:
    """`results`, with a bar on stderr if it shall be `shown`; of known length if `items` have one."""
    return _watched(results, items) if shown else results


def watched_async(
    results: AsyncGenerator[ResultT, None], items: object, shown: bool
) -> AsyncGenerator[ResultT, None]:
    """As watched."""
    return _watched_async(results, items) if shown else results


def _watched(results: Generator[ResultT, None, None], items: object) -> Generator[ResultT, None, None]:
    with _bar(items) as show, closing(results):
        for result in results:
            show(result)
            yield result


async def _watched_async(
    results: AsyncGenerator[ResultT, None], items: object
) -> AsyncGenerator[ResultT, None]:
    with _bar(items) as show:
        async with aclosing(results):
            async for result in results:
                show(result)
                yield result


@contextmanager
def _bar(items: object) -> Iterator[Callable[[object], None]]:
    """Gives what counts one result."""
    from rich.console import Console  # only who wants a bar pays for its import
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        total = len(items) if isinstance(items, Sized) else None
        task = progress.add_task("scoring", total=total, failed="")
        failures = 0

        def show(result: object) -> None:
            nonlocal failures
            if isinstance(result, ItemFailure):
                failures += 1
                progress.update(task, failed=f"{failures} failed")
            progress.advance(task)

        yield show
