"""The `plaudit` command: asks running services from a shell.

Exit codes: 0 done · 64 bad arguments · 69 a service can't be reached · 70 anything else · 130 Ctrl-C.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from plaudit import __version__
from plaudit.clients import (
    Chat,
    GenerateOptions,
    InvalidArgument,
    PlauditError,
    PolicyClient,
    Reward,
    RewardClient,
    Run,
    TrainerClient,
    Unavailable,
)

EXIT_ARGUMENTS, EXIT_UNREACHABLE, EXIT_FAILED = 64, 69, 70
_CLICK_USAGE_ERROR = 2

app = typer.Typer(
    help="Asks Plaudit's services. PLAUDIT_TOKEN of the environment goes with every call.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Address = Annotated[str, typer.Option(help="HOST:PORT of the service.", show_default=False)]
Timeout = Annotated[float, typer.Option(help="Seconds the call may take.")]
Json = Annotated[bool, typer.Option("--json", help="Print everything the service said, as JSON.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"plaudit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options that stand before a command."""


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the policy continues.")],
    address: Address,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of a response.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest tokens of this probability.")] = 1.0,
    samples: Annotated[int, typer.Option(help="Responses to print.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Makes the responses repeatable.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="The prompt is a user's turn of a chat.")] = False,
    timeout: Timeout = 60.0,
    as_json: Json = False,
) -> None:
    """Prints responses of a policy, one after the other."""
    options = GenerateOptions(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, samples_per_prompt=samples
    )
    if seed is not None:
        options["seeds"] = [seed]
    with PolicyClient(address, timeout=timeout) as policy:
        generation = policy.generate([Chat([("user", prompt)]) if chat else prompt], **options)
    if as_json:
        _print_json(dataclasses.asdict(generation))
        return
    for sequence in generation.sequences:
        print(sequence.text)


@app.command()
def score(
    prompt: Annotated[str, typer.Argument(help="What was asked.")],
    response: Annotated[str, typer.Argument(help="The response to judge.")],
    address: Address,
    timeout: Timeout = 60.0,
    as_json: Json = False,
) -> None:
    """Prints the reward of a response."""
    with RewardClient(address, timeout=timeout) as reward:
        scores = reward.score([(prompt, response)], all_or_nothing=True)
    result = scores[0]
    assert isinstance(result, Reward), "all_or_nothing raises an item's failure"
    if as_json:
        _print_json({**dataclasses.asdict(result), "model": dataclasses.asdict(scores.model)})
    else:
        print(f"{result.reward:.6g}")


@app.command()
def run(address: Address, timeout: Timeout = 60.0, as_json: Json = False) -> None:
    """Prints how a training run is doing."""
    with TrainerClient(address, timeout=timeout) as trainer:
        state = trainer.get_run()
    if as_json:
        _print_json(dataclasses.asdict(state))
    else:
        Console().print(run_table(state))


def run_table(run: Run) -> Table:
    """A run as two columns: where it stands, then its last metrics."""
    table = Table("", "", title=f"{run.run_id} · {run.stage} · {run.state}", show_header=False)
    table.add_row("step", f"{run.step} of {run.total_steps}")
    table.add_row("started", _time(run.started_at))
    table.add_row("last step", _time(run.last_step_at))
    table.add_row("checkpoint", run.checkpoint or "none yet")
    if run.error:
        table.add_row("error", run.error, style="red")
    table.add_section()
    for name, value in sorted(run.metrics.items()):
        table.add_row(name, f"{value:.6g}")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; errors are one line on stderr."""
    try:
        app(args=arguments, prog_name="plaudit")
    except SystemExit as end:
        return EXIT_ARGUMENTS if end.code == _CLICK_USAGE_ERROR else int(end.code or 0)
    except PlauditError as error:
        print(f"plaudit: {error}", file=sys.stderr)
        return _exit_code(error)
    return 0


def _exit_code(error: PlauditError) -> int:
    if isinstance(error, InvalidArgument):
        return EXIT_ARGUMENTS
    return EXIT_UNREACHABLE if isinstance(error, Unavailable) else EXIT_FAILED


def _time(moment: datetime | None) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S %Z}" if moment else "none yet"


def _print_json(value: object) -> None:
    print(json.dumps(value, default=_plain, ensure_ascii=False, indent=2))


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no JSON form")
