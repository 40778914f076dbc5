"""`plaudit run`: how a training run is doing, what happens to it, and its end on request."""

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli.exits import EXIT_FAILED
from plaudit.cli.options import Address, Json, Timeout
from plaudit.cli.printing import local_time, print_json, print_table

if TYPE_CHECKING:
    from rich.table import Table

    from plaudit.clients import Run

SHOWN = ("objective/scores", "objective/kl", "train/loss", "response_length/mean", "tokens_per_second")
"""Metrics of the line that stands for a step, where the stage has them."""

app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)


@app.callback()
def run(
    context: typer.Context,
    address: Annotated[str, typer.Option(help="HOST:PORT of the trainer.", show_default=False)] = "",
    timeout: Timeout = 60.0,
    as_json: Json = False,
) -> None:
    """Prints how a training run is doing; `watch` follows it, `stop` ends it."""
    if context.invoked_subcommand is not None:
        return
    if not address:
        raise typer.BadParameter("is missing; give HOST:PORT of the trainer", param_hint="--address")
    from plaudit.clients import TrainerClient

    with TrainerClient(address, timeout=timeout) as trainer:
        state = trainer.get_run()
    if as_json:
        print_json(dataclasses.asdict(state))
    else:
        print_table(run_table(state))


@app.command()
def watch(
    address: Address,
    patience: Annotated[float, typer.Option(help="Seconds that a trainer may be away.")] = 60.0,
    as_json: Json = False,
) -> None:
    """Prints each step as it ends, until the run has ended; 70 if it failed."""
    from plaudit.cli.printing import plain
    from plaudit.clients import TrainerClient

    with TrainerClient(address) as trainer:
        for event in trainer.watch_run(patience=patience):
            state = event.run
            if as_json:
                print(json.dumps(dataclasses.asdict(event), default=plain, ensure_ascii=False), flush=True)
            else:
                print(run_line(state), flush=True)
    if state.state == "failed":
        raise typer.Exit(EXIT_FAILED)


@app.command()
def stop(address: Address, timeout: Timeout = 60.0) -> None:
    """Asks the run to end after the step under way, with a checkpoint."""
    from plaudit.clients import TrainerClient

    with TrainerClient(address, timeout=timeout) as trainer:
        state = trainer.stop_run()
    print(f"{state.run_id} ends after the step under way; it has done {state.step} of {state.total_steps}")


def run_line(run: "Run") -> str:
    """A run in one line."""
    when = f"{(run.last_step_at or run.started_at).astimezone():%H:%M:%S}"
    shown = [f"{name} {run.metrics[name]:.4g}" for name in SHOWN if name in run.metrics]
    end = [run.error] if run.error else []
    return "  ".join([when, run.state, f"step {run.step}/{run.total_steps}", *shown, *end])


def run_table(run: "Run") -> "Table":
    """A run as two columns: where it stands, then its last metrics."""
    from rich.table import Table

    table = Table("", "", title=f"{run.run_id} · {run.stage} · {run.state}", show_header=False)
    table.add_row("step", f"{run.step} of {run.total_steps}")
    table.add_row("started", local_time(run.started_at))
    table.add_row("last step", local_time(run.last_step_at))
    table.add_row("checkpoint", run.checkpoint or "none yet")
    if run.error:
        table.add_row("error", run.error, style="red")
    table.add_section()
    for name, value in sorted(run.metrics.items()):
        table.add_row(name, f"{value:.6g}")
    return table
