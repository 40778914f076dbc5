"""`python -m trainer evaluate`: reads, compares, writes evaluation.json, prints a table, makes a report."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.placement import Placement, apply_threads, choose_placement
from plaudit.clients.errors import InvalidArgument
from trainer.config import RunOptions
from trainer.data import Context, read_prompts
from trainer.errors import ConfigError
from trainer.evaluate.candidates import load_candidate
from trainer.evaluate.compare import Comparison
from trainer.evaluate.config import EvaluateConfig
from trainer.evaluate.judges import load_judges
from trainer.examples import LENGTH_COLUMNS, length_row
from trainer.outputs import write_json
from trainer.progress import show_table, waiting
from trainer.report.build import build_report

FILE_NAME = "evaluation.json"


def run(config: EvaluateConfig, options: RunOptions) -> None:
    """Compares the two policies. The same configuration and weights give the same file.

    Raises ConfigError, DataError, JudgeError, ModelLoadError, ServiceUnreachable, PlauditError.
    """
    for option, value in (("--address", options.address), ("--metrics-address", options.metrics_address)):
        if value is not None:
            raise ConfigError.at(option, "evaluate serves nothing; leave it out")
    placement = choose_placement(config.placement.device, config.placement.dtype, config.run.threads)
    apply_threads(placement)
    contexts = read_prompts(config.data.prompts)[: config.data.limit]
    comparison = _prepare(config, contexts, placement)
    if options.dry_run:
        show_sizes(comparison)
        print(
            f"{len(contexts)} prompts of {config.data.prompts}; judges: {', '.join(config.judges) or 'none'}"
        )
        return
    try:
        evaluation = comparison.run()
    except InvalidArgument as error:
        raise ConfigError([str(error)]) from error
    path = write(config.run.folder, evaluation)
    show(evaluation)
    title = f"{config.b.name} against {config.a.name}"
    report = build_report(path.with_name("report.html"), title=title, evaluations={title: path})
    print(f"written: {path}, {report}")


def show_sizes(comparison: Comparison) -> None:
    """Prints token statistics, where the tokenizer is here. Raises DataError for a prompt too long."""
    rows = [length_row(f"prompts of {name}", each) for name, each in comparison.prompt_lengths().items()]
    if rows:
        show_table("Prompts", LENGTH_COLUMNS, rows)


def _prepare(config: EvaluateConfig, contexts: Sequence[Context], placement: Placement) -> Comparison:
    """Loads everything before anything is generated, so that a wrong judge is known at once."""
    judges = load_judges(config.judges, placement, "judges")
    with waiting("loading A"):
        a = load_candidate(config.a, config.sampling, placement)
    with waiting("loading B"):
        b = load_candidate(config.b, config.sampling, placement)
    return Comparison(a, b, contexts, judges, config)


def write(folder: Path, evaluation: Mapping[str, Any]) -> Path:
    """Writes evaluation.json into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME
    write_json(path, evaluation)
    return path


def show(evaluation: Mapping[str, Any]) -> None:
    """Prints the tables of a comparison."""
    title = f"B: {evaluation['b']['label']}, against A: {evaluation['a']['label']}"
    if evaluation["judges"]:
        show_table(title, ("judge", "A", "B", "win rate of B", "at equal length", "A again", "best of n"),
                   _judge_rows(evaluation))  # fmt: skip
        title = "measures"
    names = ("length_mean", "eos_rate", "distinct_1", "distinct_2", "entropy")
    rows = [(name, evaluation["a"][name], evaluation["b"][name]) for name in names]
    kl = evaluation["kl"]
    rows.append(("kl from A, nats", 0.0, _interval(kl) if kl else evaluation["kl_reason"]))
    show_table(title, ("measure", "A", "B"), rows)


def _judge_rows(evaluation: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    for name, judge in evaluation["judges"].items():
        keys = ("win_rate", "length_controlled_win_rate", "control", "best_of_n")
        rates = (_interval(judge[key]) if judge[key] else "" for key in keys)
        yield name, judge["a"]["mean"], judge["b"]["mean"], *rates


def _interval(estimate: Mapping[str, float]) -> str:
    return f"{estimate['mean']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"
