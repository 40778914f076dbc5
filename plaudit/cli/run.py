"""`plaudit run`."""

import dataclasses
from typing import TYPE_CHECKING

from plaudit.cli.options import Address, Json, Timeout
from plaudit.cli.printing import local_time, print_json, print_table

if TYPE_CHECKING:
    from rich.table import Table

    from plaudit.clients import Run


def run(address: Address, timeout: Timeout = 60.0, as_json: Json = False) -> None:
    """Prints how a training run is doing."""
    from plaudit.clients import TrainerClient

    with TrainerClient(address, timeout=timeout) as trainer:
        state = trainer.get_run()
    if as_json:
        print_json(dataclasses.asdict(state))
    else:
        print_table(run_table(state))


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
