"""`plaudit status`: how services are, in one table."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli.exits import EXIT_FAILED, EXIT_UNREACHABLE
from plaudit.cli.options import Json, Timeout
from plaudit.cli.printing import print_json, print_table

if TYPE_CHECKING:
    from rich.table import Table

    from plaudit.survey import Sight


def status(
    addresses: Annotated[list[str], typer.Argument(help="HOST:PORT of each service.", metavar="ADDRESS...")],
    timeout: Timeout = 5.0,
    as_json: Json = False,
) -> None:
    """Prints which models stand at some addresses, and how they are."""
    from plaudit.survey import survey

    sights = survey(addresses, timeout)
    if as_json:
        print_json([dataclasses.asdict(sight) for sight in sights])
    else:
        print_table(status_table(sights))
    if any(sight.away for sight in sights):
        raise typer.Exit(EXIT_UNREACHABLE)
    if any(sight.error for sight in sights):
        raise typer.Exit(EXIT_FAILED)


def status_table(sights: Sequence["Sight"]) -> "Table":
    """A row for each model, run, or address where nothing is found."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption="queue: items/tokens", caption_justify="left")
    for name in ("service", "address", "model", "step", "digest", "health", "queue"):
        table.add_column(
            name, overflow="fold", no_wrap=name != "model", min_width=12 if name == "model" else None
        )
    for sight in sights:
        table.add_row(*_cells(sight), style="red" if sight.error else "")
    return table


def _cells(sight: "Sight") -> tuple[str, ...]:
    model, queue = sight.model, sight.queue
    names = ": ".join(filter(None, (sight.name, model.model_id if model else "")))
    return (
        sight.service or "–",
        sight.address,
        "\n".join(filter(None, (names, sight.error))),
        sight.step,
        model.weights_sha256[:8] if model else "",
        sight.health or ("no answer" if sight.away else "unknown"),
        f"{queue.items:,}/{queue.tokens:,}" if queue else "",
    )
