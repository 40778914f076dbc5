"""`plaudit rank` and `plaudit compare`: which response is best."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli.exits import EXIT_SOME_BAD
from plaudit.cli.options import (
    Address,
    AsChat,
    Components,
    Json,
    Model,
    Timeout,
    TooLong,
    Urgency,
    prompt_of,
    score_options,
)
from plaudit.cli.printing import one_line, print_json, print_table

if TYPE_CHECKING:
    from rich.table import Table

    from plaudit.clients import Comparison, Ranking, Reward

Candidates = Annotated[list[str] | None, typer.Argument(help="Responses to the prompt.", show_default=False)]
From = Annotated[
    Path | None,
    typer.Option("--from", help="Responses from a file, one a line, or JSON lines {response}; - for stdin."),
]
TopN = Annotated[int | None, typer.Option(min=1, help="Print only so many of the best.", show_default=False)]


def rank(
    prompt: Annotated[str, typer.Argument(help="What the responses answer or continue.")],
    address: Address,
    candidates: Candidates = None,
    source: From = None,
    top_n: TopN = None,
    model: Model = "",
    truncation: TooLong = "error",
    priority: Urgency = "normal",
    components: Components = False,
    chat: AsChat = False,
    timeout: Timeout = 60.0,
    as_json: Json = False,
) -> None:
    """Orders responses to one prompt, best first."""
    from plaudit.clients import RewardClient

    responses = [*(candidates or []), *(_read(source) if source else [])]
    options = score_options(model, truncation, priority, components)
    with RewardClient(address, timeout=timeout) as client:
        ranking = client.rank(prompt_of(prompt, chat), responses, top_n=top_n, **options)
    if as_json:
        print_json(dataclasses.asdict(ranking))
    else:
        print_table(ranking_table(ranking, responses))
    if ranking.unranked:
        raise typer.Exit(EXIT_SOME_BAD)


def compare(
    prompt: Annotated[str, typer.Argument(help="What the responses answer or continue.")],
    first: Annotated[str, typer.Argument(help="One response.")],
    second: Annotated[str, typer.Argument(help="The other.")],
    address: Address,
    temperature: Annotated[
        float | None, typer.Option(help="Divides the difference of the rewards; the model's own if left out.")
    ] = None,
    model: Model = "",
    truncation: TooLong = "error",
    priority: Urgency = "normal",
    components: Components = False,
    chat: AsChat = False,
    timeout: Timeout = 60.0,
    as_json: Json = False,
) -> None:
    """Prints how probably people prefer the first of two responses."""
    from plaudit.clients import RewardClient

    options = score_options(model, truncation, priority, components)
    with RewardClient(address, timeout=timeout) as client:
        comparison = client.compare(
            prompt_of(prompt, chat), first, second, temperature=temperature, **options
        )
    if as_json:
        print_json(dataclasses.asdict(comparison))
    else:
        print_table(comparison_table(comparison, first, second))


def ranking_table(ranking: "Ranking", responses: Sequence[str]) -> "Table":
    """The ranked, then the others with the reason."""
    from rich.table import Table

    table = Table("rank", "reward", "tokens", "response")
    for candidate in ranking.ranked:
        table.add_row(str(candidate.rank), *_cells(candidate.reward), one_line(responses[candidate.index]))
    table.add_section()
    for other in ranking.unranked:
        table.add_row(
            "–", "–", "–", f"{one_line(responses[other.index])}\n{other.failure.message}", style="red"
        )
    return table


def comparison_table(comparison: "Comparison", first: str, second: str) -> "Table":
    """Both responses with the probability that each is preferred."""
    from rich.table import Table

    table = Table(
        "preferred", "reward", "tokens", "response", caption=f"temperature {comparison.temperature:g}"
    )
    both = (
        (comparison.probability, comparison.first, first),
        (1 - comparison.probability, comparison.second, second),
    )
    for probability, reward, text in both:
        table.add_row(f"{probability:.1%}", *_cells(reward), one_line(text))
    return table


def _cells(reward: "Reward") -> tuple[str, str]:
    parts = "".join(f"\n{part.name} {part.reward:.6g}" for part in reward.components)
    return f"{reward.reward:.6g}{parts}", str(reward.token_count)


def _read(path: Path) -> list[str]:
    """Raises FileError."""
    from plaudit.files.jsonl import JsonLines
    from plaudit.files.rows import FileError

    try:
        if path.suffix != ".jsonl":
            text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
            return [line for line in text.splitlines() if line]
        rows = list(JsonLines(path).rows())
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: can't be read: {error}") from None
    for row in rows:
        if not isinstance(row.columns.get("response"), str):
            raise FileError(f"{path} line {row.line}: {row.problem or 'has no text in response'}")
    return [row.columns["response"] for row in rows]
