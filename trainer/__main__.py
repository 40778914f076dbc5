"""The command line `python -m trainer`. Torch isn't imported before the configuration is known to be right.

Exit codes: 0 done · 64 configuration or data wrong · 69 a service can't be reached · 70 not finite or
internal · 75 start again with --resume: stopped, or something stayed away for too long · 130 Ctrl-C.
"""

import gc
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from lm.errors import LmError
from lm.roots import Roots
from services.packages import absence, brought_by
from services.rpc.arguments import (
    ROOTS_HELP,
    ROOTS_KEY,
    HealthAddress,
    Insecure,
    MetricsPlaintext,
    OidcAudience,
    OidcIssuer,
    OidcJwks,
    Reflection,
    TlsCert,
    TlsClientCa,
    TlsKey,
    TokensFile,
)
from trainer.errors import ConfigError, ServiceUnreachable, TrainerError
from trainer.standard_streams import lossy
from trainer.stopping import end_early_on_sigterm, end_with_parent

with brought_by("train"):
    from trainer.config import RunOptions, StageConfig, load_config, render_toml

EXIT_USAGE = ConfigError.exit_code
EXIT_INTERRUPTED = 130

_UNREACHABLE = (
    ("trainer.ppo.roles", "RoleUnavailable"),
    ("plaudit.clients.errors", "Unavailable"),
    ("plaudit.clients.errors", "DeadlineExceeded"),
    ("plaudit.clients.errors", "Overloaded"),
)

logger = logging.getLogger("trainer")


@dataclass(frozen=True)
class Stage:
    """A subcommand: `run(config, options)` in `module`.run, its configuration class in `module`.config."""

    command: str
    module: str
    config: str
    help: str


STAGES = (
    Stage("sft", "trainer.sft", "SFTConfig", "Fine-tune a policy on demonstrations."),
    Stage("reward-model", "trainer.reward_model", "RewardModelConfig", "Train a reward model on rankings."),
    Stage("ppo", "trainer.ppo", "PPOConfig", "Train a policy by PPO against live services."),
    Stage("evaluate", "trainer.evaluate", "EvaluateConfig", "Compare two policies on a file of prompts."),
)


def main(arguments: Sequence[str]) -> int:
    """The exit code of a command line; every error is one clear message on standard error."""
    sys.stderr = lossy(sys.stderr)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    # Spinning OpenMP threads of trainer and services on one machine slow each other down 12-23 times.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        build_app()(list(arguments), prog_name="python -m trainer")
    except SystemExit as end:
        if end.code == EXIT_INTERRUPTED:  # typer turns Ctrl-C into it
            print("interrupted; go on from the last checkpoint with --resume", file=sys.stderr)
        return EXIT_USAGE if end.code == 2 else int(end.code or 0)
    except Exception as error:
        return report(error, debug="--debug" in arguments)
    return 0


def build_app() -> typer.Typer:
    """The four subcommands."""
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        help="The three stages of InstructGPT, and the comparison of two policies.",
    )
    for stage in STAGES:
        app.command(stage.command, help=stage.help)(_command(stage))
    return app


def report(error: Exception, debug: bool) -> int:
    """Tells what went wrong on standard error, with a traceback only in `debug`; returns the exit code."""
    if debug:
        logger.error("traceback as asked for", exc_info=error)
    if isinstance(error, ConfigError):
        print(_listed(error), file=sys.stderr)
    elif isinstance(error, TrainerError | LmError):
        print(_one_line(error), file=sys.stderr)
    elif absent := absence(error, "train"):
        print(absent, file=sys.stderr)
    else:
        print(f"{type(error).__name__}: {_one_line(error)} (--debug shows where)", file=sys.stderr)
    return exit_code(error)


def exit_code(error: Exception) -> int:
    """The code of an error tree's branch; see the table on top."""
    if isinstance(error, TrainerError):
        return error.exit_code
    if isinstance(error, LmError):
        return ConfigError.exit_code
    # Looked up, not imported: an error of a module that isn't loaded can't have been raised.
    for module, name in _UNREACHABLE:
        if module in sys.modules and isinstance(error, getattr(sys.modules[module], name)):
            return ServiceUnreachable.exit_code
    return TrainerError.exit_code


def _command(stage: Stage) -> Callable[..., None]:
    def command(
        config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="See --print-config.")],
        set_: Annotated[
            list[str] | None, typer.Option("--set", metavar="A.B=C", help="Overrides a key; repeatable.")
        ] = None,
        roots: Annotated[
            str | None, typer.Option(metavar="DIR:DIR", envvar=ROOTS_KEY, help=ROOTS_HELP)
        ] = None,
        resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
        accept_changes: Annotated[
            str, typer.Option(metavar="A.B,…", help="What may differ from the checkpoint's run.")
        ] = "",
        print_config: Annotated[
            bool, typer.Option("--print-config", help="Print the effective configuration and exit.")
        ] = False,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Check data and services, train nothing.")
        ] = False,
        address: Annotated[
            str | None, typer.Option(help="HOST:PORT of TrainerService; none without.")
        ] = None,
        metrics_address: Annotated[
            str | None, typer.Option(help="HOST:PORT of Prometheus metrics; none without.")
        ] = None,
        tls_cert: TlsCert = None,
        tls_key: TlsKey = None,
        tls_client_ca: TlsClientCa = None,
        tokens: TokensFile = None,
        oidc_issuer: OidcIssuer = None,
        oidc_audience: OidcAudience = None,
        oidc_jwks: OidcJwks = None,
        insecure: Insecure = False,
        health_address: HealthAddress = None,
        metrics_plaintext: MetricsPlaintext = False,
        reflection: Reflection = True,
        parent: Annotated[
            int | None, typer.Option("--exit-with-parent", metavar="PID", help="Stop when that process ends.")
        ] = None,
        debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    ) -> None:
        end_with_parent(parent)
        kind: type[StageConfig] = getattr(importlib.import_module(f"{stage.module}.config"), stage.config)
        loaded = load_config(kind, config, set_ or (), roots=Roots.parse(roots))
        if print_config:
            typer.echo(render_toml(loaded), nl=False)
            return
        sys.stdout = lossy(sys.stdout)  # from here on, what the run is about goes to files
        accepted = frozenset(accept_changes.replace(",", " ").split())
        options = RunOptions(
            resume,
            dry_run,
            address,
            metrics_address,
            insecure,
            accepted,
            health_address,
            tls_cert,
            tls_key,
            tls_client_ca,
            tokens,
            oidc_issuer,
            oidc_audience,
            oidc_jwks,
            metrics_plaintext,
            reflection,
        )
        # These bring gRPC and torch, which --help needn't wait for.
        from services.rpc.tracing import traced
        from trainer.sole_writer import sole_writer

        with traced("trainer"), sole_writer(loaded.run, options):
            importlib.import_module(f"{stage.module}.run").run(loaded, options)

    return command


def _listed(error: ConfigError) -> str:
    """One line, or one for each problem below a heading."""
    heading = f"configuration {error.source}".rstrip() + ":"
    separator = " " if len(error.problems) == 1 else "\n  "
    return separator.join((heading, *error.problems))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    gc.set_threshold(50_000, 20, 100)  # torch's import makes a million objects, and all of them stay
    end_early_on_sigterm()
    sys.exit(main(sys.argv[1:]))
