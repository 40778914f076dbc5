"""`plaudit score`: one pair, or a file of them."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli.options import (
    PIPE,
    Address,
    AsChat,
    Components,
    Json,
    Model,
    TooLong,
    Urgency,
    score_options,
)
from plaudit.cli.printing import print_json
from plaudit.files import Format

if TYPE_CHECKING:
    from plaudit.clients import RewardClient, Scorable, ScoreOptions

First = Annotated[str, typer.Argument(metavar="IN", help="A file of rows, - for stdin; or a prompt.")]
Second = Annotated[str | None, typer.Argument(metavar="RESPONSE", help="The response to the prompt.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Where scored rows go; stdout if left out.")]
Side = Annotated[
    Path | None, typer.Option("--bad-rows", help="Where rows without a score go; OUT.bad.jsonl if left out.")
]
Named = Annotated[
    Format | None, typer.Option("--format", help="Format of IN and OUT; its suffix says it otherwise.")
]
Anew = Annotated[bool, typer.Option("--restart", help="Score everything anew, and replace OUT.")]
Bar = Annotated[
    bool | None, typer.Option(help="Show how far it is, on stderr; on a terminal unless told otherwise.")
]
Digest = Annotated[
    str, typer.Option("--tokenizer-sha256", help="Score token_ids; the tokenizer that made them.")
]
Window = Annotated[int, typer.Option(min=1, help="Most rows that are asked for at a time.")]
Patience = Annotated[float, typer.Option(help="Seconds to wait for an answer; for the next one of a file.")]


def score(
    first: First,
    address: Address,
    second: Second = None,
    out: Out = PIPE,
    model: Model = "",
    truncation: TooLong = "error",
    priority: Urgency = "normal",
    components: Components = False,
    bad_rows: Side = None,
    format_: Named = None,
    tokenizer_sha256: Digest = "",
    window: Window = 512,
    restart: Anew = False,
    progress: Bar = None,
    chat: AsChat = False,
    timeout: Patience = 60.0,
    as_json: Json = False,
) -> None:
    """Scores a file, or one response.

    plaudit score answers.jsonl -o scored.jsonl --address HOST:PORT adds reward, raw_reward and token_count
    to each row. Stopped by anything, the same command goes on where it was.

    plaudit score PROMPT RESPONSE --address HOST:PORT prints the reward of one response.
    """
    from plaudit.cli.score_file import score_file
    from plaudit.clients import Chat, RewardClient
    from plaudit.files.asking import Asking

    options = score_options(model, truncation, priority, components)
    of_file = {"-o": out != PIPE, "--bad-rows": bad_rows, "--format": format_, "--restart": restart}
    with RewardClient(address, timeout=timeout) as client:
        if second is not None:
            _refuse("is for files, not for one response", of_file | {"--tokenizer-sha256": tokenizer_sha256})
            item = Chat([("user", first), ("assistant", second)]) if chat else (first, second)
            _print_score(client, item, options, as_json)
        else:
            _refuse("is for one response, not for files", {"--chat": chat, "--json": as_json})
            asking = Asking(client, options, tokenizer_sha256, window, timeout)
            score_file(Path(first), out, bad_rows, format_, asking, restart, progress)


def _print_score(client: "RewardClient", item: "Scorable", options: "ScoreOptions", as_json: bool) -> None:
    from plaudit.clients import Reward

    scores = client.score([item], all_or_nothing=True, **options)
    result = scores[0]
    assert isinstance(result, Reward), "all_or_nothing raises an item's failure"
    if as_json:
        print_json({**dataclasses.asdict(result), "model": dataclasses.asdict(scores.model)})
        return
    print(f"{result.reward:.6g}")
    for part in result.components:
        print(f"{part.name} {part.reward:.6g}")


def _refuse(why: str, given: dict[str, object]) -> None:
    for name, value in given.items():
        if value:
            raise typer.BadParameter(why, param_hint=name)
