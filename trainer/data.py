"""Data files: JSONL, one object a line, read whole and checked at the edge.

    demonstrations  {"prompt", "completion"} or {"messages"}: the last turn is the assistant's
    rankings        {"prompt" or "messages", "completions": [text], "ranks": [int], "labeler"?}
                    ranks align with completions; 1 is best, equal is a tie
                    the prompt may be "": texts ranked by themselves
    pairs           {"prompt" or "messages", "chosen", "rejected"}: a ranking of two
    prompts         {"prompt"} or {"messages"}
    pretraining     {"text"}

Other columns are ignored, empty lines too. Every DataError names file, line and field, and says what to do;
it quotes no text of the file.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lm.errors import InputError
from lm.tokenizer import encode_chat, encode_text
from trainer.errors import DataError

Messages = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Context:
    """What a completion answers: plain text or a conversation; exactly one of the two is there."""

    where: str
    """File and line, for messages."""
    text: str = ""
    messages: Messages = ()
    """(role, content) turns."""

    def encode(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The ids a policy is prompted with; a conversation ends in the template's generation prompt.

        Raises DataError for special tokens in the text, or a conversation without a template.
        """
        with _located(self.where):
            if self.messages:
                return encode_chat(tokenizer, self.messages, add_generation_prompt=True)
            return encode_text(tokenizer, self.text, "prompt")

    def encode_completion(self, tokenizer: PreTrainedTokenizerBase, completion: str, field: str) -> list[int]:
        """The ids of a completion as a policy would generate them: the text, then EOS."""
        with _located(self.where):
            ids = encode_text(tokenizer, completion, field)
        if tokenizer.eos_token_id is None:
            raise DataError(f"{self.where}: the tokenizer has no EOS token, so completions could not end")
        return [*ids, int(tokenizer.eos_token_id)]


@dataclass(frozen=True)
class Demonstration:
    """A completion to imitate."""

    context: Context
    completion: str


@dataclass(frozen=True)
class Ranking:
    """K completions of one prompt with a human's order."""

    context: Context
    completions: tuple[str, ...]
    ranks: tuple[int, ...]
    """1 is best, equal is a tie."""
    labeler: str | None = None


def read_demonstrations(path: Path) -> list[Demonstration]:
    """Demonstrations, in the file's order."""
    return [_demonstration(line) for line in _lines(path)]


def read_rankings(path: Path) -> list[Ranking]:
    """Rankings and pairs, mixed as they come."""
    return [_pair(line) if "chosen" in line.fields else _ranking(line) for line in _lines(path)]


def read_prompts(path: Path) -> list[Context]:
    """Prompts; a conversation ends before the assistant's answer."""
    return [line.context() for line in _lines(path)]


def read_texts(path: Path) -> list[str]:
    """Pretraining texts."""
    return [line.text("text") for line in _lines(path)]


def file_digest(path: Path) -> str:
    """sha256 of the file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class _Line:
    """One object of a file."""

    where: str
    fields: Mapping[str, Any]

    def error(self, field: str, what: str) -> DataError:
        return DataError(f"{self.where}: {field}: {what}")

    def text(self, field: str) -> str:
        return self.check_text(field, self.required(field))

    def required(self, field: str) -> object:
        if field not in self.fields:
            present = ", ".join(sorted(self.fields)) or "nothing"
            raise self.error(field, f"is missing; the line has {present}")
        return self.fields[field]

    def check_text(self, field: str, value: object) -> str:
        if not isinstance(value, str):
            raise self.error(field, f"is {_kind(value)}; it must be a text")
        if not value:
            raise self.error(field, "is empty; give it text or remove the line")
        try:
            value.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can hold
            raise self.error(field, f"has no valid Unicode at character {error.start + 1}") from None
        return value

    def sequence(self, field: str) -> list[object]:
        value = self.required(field)
        if not isinstance(value, list):
            raise self.error(field, f"is {_kind(value)}; it must be a list")
        return value

    def context(self, may_be_empty: bool = False) -> Context:
        if "messages" not in self.fields:
            empty = may_be_empty and self.fields.get("prompt") == ""
            return Context(self.where, text="" if empty else self.text("prompt"))
        if "prompt" in self.fields:
            raise self.error("messages", "stands beside prompt; keep one of the two")
        messages = self.messages()
        if messages[-1][0] == "assistant":
            raise self.error("messages", "ends in an assistant turn; it must end before the answer")
        return Context(self.where, messages=messages)

    def messages(self) -> Messages:
        turns = self.sequence("messages")
        if not turns:
            raise self.error("messages", "is empty; give at least one turn")
        return tuple(self._turn(f"messages[{index}]", turn) for index, turn in enumerate(turns))

    def _turn(self, field: str, turn: object) -> tuple[str, str]:
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            raise self.error(field, 'must be an object {"role": …, "content": …}')
        role = self.check_text(f"{field}.role", turn["role"])
        return role, self.check_text(f"{field}.content", turn["content"])


def _lines(path: Path) -> Iterator[_Line]:
    found = False
    for number, text in enumerate(_read(path).split("\n"), start=1):
        if text.strip():
            found = True
            yield _parse(f"{path} line {number}", text)
    if not found:
        raise DataError(f"{path}: holds no line; is it the right file?")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} line {number}: not UTF-8: {error.reason}; convert the file") from None


def _parse(where: str, text: str) -> _Line:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:  # also lists in lists in lists
        raise DataError(f"{where}: not JSON: {error}; each line must be one JSON object") from None
    if not isinstance(fields, dict):
        raise DataError(f"{where}: is {_kind(fields)}; each line must be a JSON object")
    return _Line(where, fields)


def _demonstration(line: _Line) -> Demonstration:
    if "messages" not in line.fields:
        return Demonstration(line.context(), line.text("completion"))
    if "prompt" in line.fields:
        raise line.error("messages", "stands beside prompt; keep one of the two")
    *turns, (role, content) = line.messages()
    if role != "assistant":
        raise line.error("messages", "ends in a turn of another role; the last must be the assistant's")
    if not turns:
        raise line.error("messages", "holds the answer only; give the turns before it")
    return Demonstration(Context(line.where, messages=tuple(turns)), content)


def _ranking(line: _Line) -> Ranking:
    completions = line.sequence("completions")
    ranks = line.sequence("ranks")
    if len(completions) < 2:
        raise line.error("completions", f"has {len(completions)}; a ranking compares at least two")
    if len(ranks) != len(completions):
        raise line.error("ranks", f"has {len(ranks)} entries for {len(completions)} completions")
    texts = tuple(line.check_text(f"completions[{i}]", each) for i, each in enumerate(completions))
    return Ranking(line.context(may_be_empty=True), texts, tuple(_ranks(line, ranks)), _labeler(line))


def _ranks(line: _Line, ranks: Sequence[object]) -> Iterator[int]:
    for index, rank in enumerate(ranks):
        if type(rank) is not int or rank < 1:
            shown = rank if type(rank) in (int, float) else _kind(rank)
            raise line.error(f"ranks[{index}]", f"is {shown}; it must be a whole number from 1 (best)")
        yield rank


def _pair(line: _Line) -> Ranking:
    texts = (line.text("chosen"), line.text("rejected"))
    return Ranking(line.context(may_be_empty=True), texts, (1, 2), _labeler(line))


def _labeler(line: _Line) -> str | None:
    labeler = line.fields.get("labeler")
    if labeler is not None and not isinstance(labeler, str | int):
        raise line.error("labeler", f"is {_kind(labeler)}; it must be a name or a number")
    return None if labeler is None else str(labeler)


@contextmanager
def _located(where: str) -> Iterator[None]:
    """Puts file and line before what the tokenizer's edge refuses."""
    try:
        yield
    except InputError as error:
        raise DataError(f"{where}: {error}") from None


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
