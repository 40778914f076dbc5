"""The `plaudit` command: asks running services from a shell.

Exit codes: 0 done · 64 bad arguments, or a file that can't be read · 65 done, but some rows or candidates
have no score · 69 a service can't be reached · 70 anything else · 130 Ctrl-C.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from plaudit import __version__
from plaudit.cli.check import check
from plaudit.cli.exits import EXIT_ARGUMENTS, EXIT_FAILED, EXIT_UNREACHABLE
from plaudit.cli.generate import generate
from plaudit.cli.rank import compare, rank
from plaudit.cli.run import app as run_app
from plaudit.cli.score import score
from plaudit.cli.status import status
from plaudit.cli.token import app as token_app

_CLICK_USAGE_ERROR = 2

app = typer.Typer(
    help="Asks Plaudit's services. PLAUDIT_TOKEN of the environment, or what is in PLAUDIT_TOKEN_FILE, goes "
    "with every call; PLAUDIT_TLS_CA, PLAUDIT_TLS_CERT and PLAUDIT_TLS_KEY turn TLS on.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (score, rank, compare, status, check, generate):
    app.command()(command)
app.add_typer(run_app, name="run")
app.add_typer(token_app, name="token")


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; errors are one line on stderr."""
    try:
        app(args=arguments, prog_name="plaudit")
    except SystemExit as end:
        return EXIT_ARGUMENTS if end.code == _CLICK_USAGE_ERROR else int(end.code or 0)
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        print(f"plaudit: {error}", file=sys.stderr)
        return code
    return 0


def _exit_code(error: Exception) -> int | None:
    """None for a fault of ours, which shows its stack."""
    from plaudit.clients import InvalidArgument, NotFound, PlauditError, Unavailable
    from plaudit.files.rows import FileError

    match error:
        case InvalidArgument() | NotFound() | FileError():
            return EXIT_ARGUMENTS
        case Unavailable():
            return EXIT_UNREACHABLE
        case PlauditError() | OSError():
            return EXIT_FAILED
    return None
