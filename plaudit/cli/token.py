"""`plaudit token`: tokens for callers, and the lines of the tokens file by which servers know them."""

import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated

import typer

from plaudit.access import CALLER_NAME, SCOPES, new_token, token_entry

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Makes tokens for callers.")


@app.callback()
def token() -> None:
    """Makes tokens for callers."""


@app.command()
def new(
    file: Annotated[Path, typer.Argument(help="Tokens file of the servers; made where there is none.")],
    name: Annotated[str, typer.Option(help="Who gets the token.", show_default=False)],
    scope: Annotated[
        list[str], typer.Option(help=f"What it opens, repeatable: {', '.join(SCOPES)}.", show_default=False)
    ],
    expires: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="First day (UTC) on which it opens nothing.")
    ] = None,
    speaks_for_others: Annotated[
        bool, typer.Option("--speaks-for-others", help="For a gateway: whom it names shares a busy model.")
    ] = False,
) -> None:
    """Adds a caller to FILE, which holds only the token's digest, and prints the token, this one time."""
    _check_name(name)
    _check_scopes(scope)
    last = None if expires is None else _checked_day(expires.date())
    made = new_token()
    _append(file, token_entry(name, made, scope, last, speaks_for_others))
    print(made)


def _append(file: Path, entry: str) -> None:
    """A server that reads meanwhile finds the file as it was or as it will be, never half of the entry."""
    before = file.read_text(encoding="utf-8").rstrip("\n") + "\n\n" if file.exists() else ""
    whole = file.with_name(f".{file.name}.new")
    whole.touch(0o600)
    whole.write_text(before + entry, encoding="utf-8")
    if before:
        whole.chmod(file.stat().st_mode)
    whole.replace(file)


def _check_name(name: str) -> None:
    if not re.fullmatch(CALLER_NAME, name, re.ASCII):
        raise typer.BadParameter("use 1 to 100 letters, digits, '_', '.', '@' or '-'", param_hint="--name")


def _check_scopes(scopes: list[str]) -> None:
    for scope in scopes:
        if scope not in SCOPES:
            raise typer.BadParameter(f"{scope!r} is none; use {', '.join(SCOPES)}", param_hint="--scope")


def _checked_day(day: date) -> date:
    if day <= datetime.now(UTC).date():
        raise typer.BadParameter(f"{day} is over; use a day to come", param_hint="--expires")
    return day
