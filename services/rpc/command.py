"""The command line of every server, `python -m services.X`. Torch isn't imported before it is parsed."""

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NoReturn

import typer
from typer.core import TyperOption

from lm.errors import InputError
from services.rpc.arguments import (
    HealthAddress,
    Insecure,
    LogTexts,
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
from services.rpc.logs import configure_logging
from services.rpc.options import Security, environment_file
from services.rpc.server import EXIT_OPTIONS, ServerOptions, Service, serve
from services.rpc.tracing import traced

MODEL_HELP = "Hugging Face folder or hub id."


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and where it runs; "auto" and 0 take what the machine does best."""

    model: str
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    special_tokens_in_text: Literal["refuse", "escape"] = "refuse"
    """What becomes of special tokens in what people wrote; see lm/special_tokens.py."""
    trust_remote_code: bool = False
    """Whether Python that comes with the model may run."""


def run_service(
    name: str,
    default_port: int,
    build: Callable[[ModelOptions], Service],
    model_help: str = MODEL_HELP,
    more: Sequence[TyperOption] = (),
) -> NoReturn:
    """Parses the command line, serves what `build` returns, and ends the process.

    `build` neither imports torch nor loads anything: the service's `load` does, in its thread. `more` are
    options of this service alone, which keep their values themselves.
    """
    gc.set_threshold(50_000, 20, 100)  # torch's import makes a million objects, and all of them stay
    code = run_command(name, default_port, build, sys.argv[1:], model_help, more)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread may still be loading the model, and an orderly exit under it crashes in torch.
    os._exit(code)


def run_command(
    name: str,
    default_port: int,
    build: Callable[[ModelOptions], Service],
    arguments: Sequence[str],
    model_help: str = MODEL_HELP,
    more: Sequence[TyperOption] = (),
) -> int:
    """The exit code of a command line."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(help=f"Serves a {name} model over gRPC. Where PLAUDIT_TOKEN is set, calls must carry it.")(
        _command(default_port, build, model_help)
    )
    command = typer.main.get_command(app)
    command.params += more
    try:
        command(list(arguments), prog_name=f"python -m services.{name}")
    except SystemExit as end:
        return EXIT_OPTIONS if end.code == 2 else int(end.code or 0)
    return 0


def _command(
    default_port: int, build: Callable[[ModelOptions], Service], model_help: str
) -> Callable[..., None]:
    def main(
        model: Annotated[str, typer.Option(help=model_help)],
        address: Annotated[
            str, typer.Option(help="HOST:PORT to listen on; port 0 takes a free one and prints it.")
        ] = f"127.0.0.1:{default_port}",
        metrics_address: Annotated[
            str | None, typer.Option(help="HOST:PORT of the Prometheus endpoint; none without it.")
        ] = None,
        device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
        dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or float64.")] = "auto",
        threads: Annotated[int, typer.Option(help="Processor threads; 0 takes the container's quota.")] = 0,
        special_tokens_in_text: Annotated[
            Literal["refuse", "escape"],
            typer.Option(help="Special tokens in people's text: an error, or read as plain text."),
        ] = "refuse",
        trust_remote_code: Annotated[
            bool,
            typer.Option("--trust-remote-code", help="Run Python that comes with the model, as some need."),
        ] = False,
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
        log_format: Annotated[str, typer.Option(help="text or json.")] = "text",
        log_texts: LogTexts = False,
        grace: Annotated[float, typer.Option(help="Seconds that calls in flight get at shutdown.")] = 20.0,
        exit_with_parent: Annotated[
            int | None, typer.Option(metavar="PID", help="Shut down when PID is no longer the parent.")
        ] = None,
    ) -> None:
        options = ServerOptions(
            address,
            metrics_address,
            insecure,
            token=os.environ.get("PLAUDIT_TOKEN"),
            token_file=environment_file("PLAUDIT_TOKEN_FILE"),
            grace_s=grace,
            log_format=log_format,
            exit_with_parent=exit_with_parent,
            security=Security(
                tls_cert, tls_key, tls_client_ca, tokens, oidc_issuer, oidc_audience, oidc_jwks
            ),
            health_address=health_address,
            reflection=reflection,
            log_texts=log_texts,
            metrics_plaintext=metrics_plaintext,
        )
        configure_logging(log_format)
        # Spinning OpenMP threads of several services on one machine make each other 12-23 times slower.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            service = build(
                ModelOptions(model, device, dtype, threads, special_tokens_in_text, trust_remote_code)
            )
        except InputError as error:
            print(error, file=sys.stderr)
            raise typer.Exit(EXIT_OPTIONS) from None
        with traced(service.name):
            raise typer.Exit(asyncio.run(serve(service, options)))

    return main
