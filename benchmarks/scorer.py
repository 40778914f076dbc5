"""How fast the reward service scores, beside what a user would pick instead; `make bench` runs it.

    python -m benchmarks.scorer [--model FOLDER] [--write docs/benchmarks.md]

All contestants score the same texts with the same model, threads and data type, one after the other, round
by round. What is compared are ratios within a round, so that a machine that is slower for a while slows
both sides. Exit codes: 0 measured, 1 float32 scores differ by more than 1e-4, 64 no texts, no model or no
page to write to.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import machine, table
from benchmarks.results import Results, Settings
from benchmarks.workload import WorkloadError, read_sentences

MOST_DIFFERENCE = 1e-4
"""Between float32 scores of the same ids."""
EXIT_DIFFERENT, EXIT_USAGE = 1, 64
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")


def main(
    model: Annotated[str, typer.Option(help="Reward model: a folder or hub id.")] = "runs/quickstart/reward",
    data: Annotated[Path, typer.Option(help="Folder of the quickstart's prepared data.")] = Path(
        ".cache/plaudit/film-reviews"
    ),
    texts: Annotated[int, typer.Option(min=1, help="Texts that each contestant scores in a round.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, of which the table has the medians.")] = 3,
    singles: Annotated[int, typer.Option(min=1, help="Single-item calls beside a full stream.")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="Of the padded contestants.")] = 16,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    threads: Annotated[int, typer.Option(min=0, help="Processor threads of each; 0 takes the quota.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the texts.")] = 0,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Few texts and rounds: only to see that it runs.")
    ] = False,
    write: Annotated[Path | None, typer.Option(help="Page whose marked part the tables replace.")] = None,
) -> None:
    """Measures the reward service against in-process loops and other people's servers and libraries."""
    try:
        sentences = read_sentences(data)
        if write:
            table.around_markers(write)  # before minutes are spent
    except (WorkloadError, table.PageError) as error:
        print(error, file=sys.stderr)
        raise typer.Exit(EXIT_USAGE) from None
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # of every process; read when torch is imported
    from lm.placement import available_cpus

    threads = threads or available_cpus()
    os.environ.update({name: str(threads) for name in THREAD_VARIABLES})
    if tiny:
        texts, rounds, singles = 24, 2, 4
    settings = Settings(model, dtype, threads, texts, rounds, singles, batch_size, seed)
    raise typer.Exit(_run(settings, sentences, write))


def _run(settings: Settings, sentences: Sequence[str], write: Path | None) -> int:
    from benchmarks.run import measure
    from lm.errors import LmError

    load = machine.load_average()
    try:
        results = measure(settings, sentences, lambda line: print(line, file=sys.stderr))
    except (WorkloadError, LmError) as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    text = table.render(results, _setting(results, load))
    print(text)
    if write:
        table.write_between_markers(write, text)
    return _judge(results)


def _setting(results: Results, load: float) -> list[str]:
    settings = results.settings
    command = shlex.join(["python", "-m", "benchmarks.scorer", *sys.argv[1:]])
    return [
        f"{machine.now()}, `{command}`",
        f"{machine.processor()}, {os.cpu_count()} processors, {machine.memory_gib():.0f} GiB; "
        f"load average {load:.1f} at the start",
        machine.versions(),
        f"`{settings.model}` in {settings.dtype}; {settings.threads} threads in each process",
        table.workload_line(results.lengths),
        f"medians of {settings.rounds} rounds, the least and the most in brackets; ratios within a round",
    ]


def _judge(results: Results) -> int:
    different = [one.name for one in results.passes if not one.difference <= MOST_DIFFERENCE]
    if results.settings.dtype != "float32" or not different:
        return 0
    print(f"scores differ by more than {MOST_DIFFERENCE:g}: {', '.join(different)}", file=sys.stderr)
    return EXIT_DIFFERENT


if __name__ == "__main__":
    typer.run(main)
