"""Options that several commands have."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:  # no command's module loads a client before it is called: --help answers at once
    from plaudit.clients import Chat, ScoreOptions

PIPE = Path("-")
"""stdin or stdout."""

Address = Annotated[str, typer.Option(help="HOST:PORT of the service.", show_default=False)]
Timeout = Annotated[float, typer.Option(help="Seconds the call may take.")]
Json = Annotated[bool, typer.Option("--json", help="Print everything the service said, as JSON.")]
Model = Annotated[str, typer.Option(help="Which model, where the server has several.", show_default=False)]
TooLong = Annotated[
    Literal["error", "left", "right"],
    typer.Option("--truncation", help="Of a text that is too long: refuse it, or cut off its left or right."),
]
Urgency = Annotated[
    Literal["low", "normal", "high"], typer.Option("--priority", help="Share of a busy model.")
]
Components = Annotated[
    bool, typer.Option("--components", help="Also the parts of an ensemble or of several attributes.")
]
AsChat = Annotated[bool, typer.Option("--chat", help="The prompt is a user's turn of a chat.")]


def score_options(model: str, truncation: TooLong, priority: Urgency, components: bool) -> "ScoreOptions":
    """The options of one call."""
    return {
        "model": model,
        "truncation": truncation,
        "priority": priority,
        "include_components": components,
    }


def prompt_of(text: str, chat: bool) -> "str | Chat":
    """A prompt as text, or as a user's turn."""
    from plaudit.clients import Chat

    return Chat([("user", text)]) if chat else text
