"""The command line `python -m trainer.cluster`: what kubectl, helm and kustomize can't do.

Exit codes: 0 done · 64 the run's configuration is wrong, or what is asked for can't be done as things stand
· 69 the API server can't be reached · 70 a workload failed · 75 not there yet, wait again · 77 the account
may not do it · 130 Ctrl-C. `submit --follow` ends with the run's own code.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from trainer.cluster.errors import NotAllowed
from trainer.errors import ConfigError, TrainerError

EXIT_USAGE = ConfigError.exit_code
EXIT_CLICK_USAGE = 2
ROLE_TO_BIND = """\
The Role plaudit-operator of k8s/components/operator-access has all that is needed:
  kubectl -n NAMESPACE create rolebinding NAME --role=plaudit-operator --user=USER"""
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

Context: TypeAlias = Annotated[
    str | None, typer.Option(help="Of the kubeconfig; without, the pod's own account or the current context.")
]
Namespace: TypeAlias = Annotated[str, typer.Option("--namespace", "-n", help="Where Plaudit is.")]
Timeout: TypeAlias = Annotated[str, typer.Option(help="Such as 90s, 15m, 3h or 2d.")]

app = typer.Typer(
    help="Waits for Plaudit on a Kubernetes cluster, tells how it is, and starts runs.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command()
def wait(
    until: Annotated[
        Literal["services", "training", "done"],
        typer.Option(help="The services are ready, the trainer works, or it is done."),
    ] = "services",
    timeout: Timeout = "15m",
    namespace: Namespace = "plaudit",
    context: Context = None,
) -> None:
    """Waits for models, services and trainer in their order; says why if they don't come."""
    from trainer.cluster.calls import open_cluster
    from trainer.cluster.waiting import wait_for

    seconds = duration(timeout)
    wait_for(open_cluster(context, namespace), until, seconds, say)


@app.command()
def status(namespace: Namespace = "plaudit", context: Context = None) -> None:
    """Prints a table of all workloads, and a line for the run."""
    from plaudit.cli.printing import print_table
    from trainer.cluster import status as cluster_status
    from trainer.cluster.calls import open_cluster

    rows = cluster_status.rows(open_cluster(context, namespace))
    sights = cluster_status.ask(rows)
    print_table(cluster_status.table(rows, sights))
    for run in cluster_status.runs(sights):
        say(cluster_status.run_text(run))
    for line in cluster_status.troubles(rows, sights):
        say(line)
    if any(sight.away for sight in sights):
        say(cluster_status.OUT_OF_REACH)


@app.command()
def submit(
    config: Annotated[Path, typer.Argument(help="TOML of a PPO run; its paths are those of the pod.")],
    name: Annotated[str | None, typer.Option(help="Of the run, instead of the TOML's run.name.")] = None,
    image: Annotated[str | None, typer.Option(help="Of the trainer, instead of the manifests'.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Print steps until the run has ended.")] = False,
    timeout: Annotated[str, typer.Option(help="Of --follow, such as 12h.")] = "7d",
    namespace: Namespace = "plaudit",
    context: Context = None,
) -> None:
    """Starts a run: a Job like plaudit-trainer with another configuration."""
    from trainer.cluster import following, submitting
    from trainer.cluster.calls import open_cluster

    seconds = duration(timeout)
    run, text = submitting.checked(config, name)
    cluster = open_cluster(context, namespace)
    job = submitting.submit(cluster, run, text, image)
    say(f"the Job {job} is made")
    if follow:
        raise typer.Exit(following.follow(cluster, job, seconds, say))


@app.command()
def resume(
    name: Annotated[str, typer.Argument(help="Of a submitted run; without, the manifests' own.")] = "",
    timeout: Annotated[str, typer.Option(help="Until the former pods are gone.")] = "15m",
    namespace: Namespace = "plaudit",
    context: Context = None,
) -> None:
    """Starts the Job of a run that has ended again; it goes on from its newest checkpoint."""
    from trainer.cluster import submitting
    from trainer.cluster.calls import open_cluster

    seconds = duration(timeout)
    job = submitting.job_name(name)
    submitting.resume(open_cluster(context, namespace), job, seconds, say)
    say(f"the Job {job} is made anew")


def duration(text: str) -> float:
    """Seconds of 90s, 15m, 3h or 2d."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is None:
        raise typer.BadParameter("has a unit: 90s, 15m, 3h or 2d", param_hint="--timeout")
    return float(found[1]) * UNITS[found[2]]


def say(line: str) -> None:
    """A line on stdout, at once."""
    print(line, flush=True)


def main(arguments: Sequence[str]) -> int:
    """The exit code of a command line; every error is told on standard error."""
    try:
        app(list(arguments), prog_name="python -m trainer.cluster")
    except SystemExit as end:
        return EXIT_USAGE if end.code == EXIT_CLICK_USAGE else int(end.code or 0)
    except ConfigError as error:
        print("\n  ".join(["the configuration is wrong:", *error.problems]), file=sys.stderr)
        return error.exit_code
    except TrainerError as error:
        print(error, file=sys.stderr)
        if isinstance(error, NotAllowed):
            print(ROLE_TO_BIND, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
