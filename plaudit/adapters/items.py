"""What trainers hand to a reward function, as what a reward model scores."""

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from plaudit.clients import Chat, InvalidArgument, Scorable

Text: TypeAlias = str | Iterable[Mapping[str, str]]
"""Plain text, or turns of a conversation: {"role": …, "content": …}, oldest first."""


def scorable(prompt: Text, response: Text, field: str) -> Scorable:
    """Two texts are a pair; where either is a conversation, both together are one, and its last turn counts.

    Raises InvalidArgument, naming `field`, for what a reward model can't be asked about as it stands: content
    that isn't text, and tool calls.
    """
    if isinstance(prompt, str) and isinstance(response, str):
        return prompt, response
    before = _turns(prompt, "user", f"{field}.prompt")
    return Chat(before + _turns(response, "assistant", f"{field}.response"))


def _turns(text: Text, role: str, field: str) -> list[tuple[str, str]]:
    if isinstance(text, str):
        return [(role, text)]
    if not isinstance(text, Iterable):
        raise InvalidArgument.at(field, f"{text!r} is neither text nor a list of turns")
    return [_turn(message, f"{field}[{index}]") for index, message in enumerate(text)]


def _turn(message: Mapping[str, str], field: str) -> tuple[str, str]:
    if not isinstance(message, Mapping):
        raise InvalidArgument.at(field, f"{message!r} is no turn; write {{'role': …, 'content': …}}")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not isinstance(content, str):
        raise InvalidArgument.at(field, f"{dict(message)!r} isn't text; role and content must be str")
    if message.get("tool_calls"):
        raise InvalidArgument.at(f"{field}.tool_calls", "can't be sent; write the calls into the content")
    return role, content
