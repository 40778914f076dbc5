"""Special tokens in people's text: refused, or read as the plain text that they are.

A tokenizer takes "<|im_end|>" for the control token, whoever wrote it: with it, a user could end their own
turn and go on as the system.
"""

import copy
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from lm.errors import InputError, ModelLoadError

SpecialTokensInText = Literal["refuse", "escape"]
"""What becomes of them."""


@dataclass(frozen=True)
class ControlTokens:
    """A tokenizer's special tokens."""

    pattern: re.Pattern[str]
    """Matches any of them, the longest first."""
    ids: frozenset[int]
    """But for the id of what isn't known, which plain text may hold."""


@dataclass(frozen=True)
class Escape:
    """How a tokenizer reads special tokens as text."""

    reader: PreTrainedTokenizerBase
    """The tokenizer, but its special tokens have secret names: what people write is never one of them."""
    pattern: re.Pattern[str]
    secret: Mapping[str, str]
    """The reader's name of each special token."""
    mark: Mapping[str, str]
    """What stands for each in people's text while a chat template works on it."""

    def marked(self, text: str) -> str:
        """Text of a person's, in which a chat template finds no special token."""
        return self.pattern.sub(lambda found: self.mark[found[0]], text)

    def named(self, rendered: str) -> str:
        """For the reader: the template's special tokens by their secret names, and people's as they were."""
        text = self.pattern.sub(lambda found: self.secret[found[0]], rendered)
        for token, mark in self.mark.items():
            text = text.replace(mark, token)
        return text


_control: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[tuple[object, ...], ControlTokens]] = (
    WeakKeyDictionary()
)
"""By tokenizer: to list its special tokens takes longer than to tokenise a line."""
_WAYS_OUT = (
    "remove it, or give a rendered chat as its messages or as token ids; a server that is started with "
    "--special-tokens-in-text escape reads such tokens as plain text"
)
_escapes: WeakKeyDictionary[PreTrainedTokenizerBase, Escape] = WeakKeyDictionary()


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
    """The tokenizer's special tokens, as they are now."""
    state = (len(tokenizer), *tokenizer.all_special_tokens)
    known = _control.get(tokenizer)
    if known and known[0] == state:
        return known[1]
    strings = _strings(tokenizer)
    ids: set[Any] = {tokenizer.convert_tokens_to_ids(each) for each in strings}
    found = ControlTokens(_pattern(strings), frozenset(ids - {None, tokenizer.unk_token_id}))
    _control[tokenizer] = (state, found)
    return found


def refuse_special_tokens(tokenizer: PreTrainedTokenizerBase, text: str, field: str) -> None:
    """Raises InputError if `text` holds a special token and the tokenizer doesn't escape it."""
    found = None if tokenizer in _escapes else control_tokens(tokenizer).pattern.search(text)
    if found:
        raise InputError(field, f"holds the special token {found[0]!r}; {_WAYS_OUT}")


def refuse_control_ids(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], field: str, allowed: int = 0
) -> None:
    """Raises InputError if more than `allowed` of `ids` are special tokens.

    A last look, at what a tokenizer has made of a text: some look for special tokens in what they normalised.
    """
    if ids and sum(map(control_tokens(tokenizer).ids.__contains__, ids)) > allowed:
        raise InputError(field, f"holds what the tokenizer reads as a special token; {_WAYS_OUT}")


def escape_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """From now on special tokens in people's text are plain text to this tokenizer.

    Raises ModelLoadError where a tokenizer can't be made to.
    """
    strings = _strings(tokenizer)
    secret, mark = _names(strings), _names(strings)
    escape = Escape(_renamed(tokenizer, secret), _pattern(strings), secret, mark)
    for token, name in secret.items():
        if escape.reader.backend_tokenizer.token_to_id(name) != tokenizer.backend_tokenizer.token_to_id(
            token
        ):
            raise ModelLoadError(
                f"the special token {token!r} of this tokenizer can't be escaped; refuse them"
            )
    _escapes[tokenizer] = escape


def escape_of(tokenizer: PreTrainedTokenizerBase) -> Escape | None:
    """How the tokenizer reads special tokens as text; None where they are refused."""
    return _escapes.get(tokenizer)


def reader_of(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """What tokenises people's text: where special tokens are refused, the tokenizer itself."""
    escape = _escapes.get(tokenizer)
    return escape.reader if escape else tokenizer


def _strings(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The special tokens, the longest first."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return sorted({*tokenizer.all_special_tokens, *added} - {""}, key=len, reverse=True)


def _pattern(strings: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, strings)) or r"(?!)")


def _names(strings: Sequence[str]) -> dict[str, str]:
    """Names that nobody can guess, of characters that no normaliser changes."""
    nonce = secrets.token_hex(12)
    return {token: f"<{nonce}x{index}>" for index, token in enumerate(strings)}


def _renamed(tokenizer: PreTrainedTokenizerBase, names: Mapping[str, str]) -> PreTrainedTokenizerBase:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # written in Python
        raise ModelLoadError(
            "special tokens in text can't be escaped by a tokenizer without tokenizer.json; refuse them"
        )
    copied = copy.deepcopy(tokenizer)
    try:
        copied._tokenizer = Tokenizer.from_str(json.dumps(_with_names(json.loads(backend.to_str()), names)))
    except Exception as error:  # the only type it has: a token that letters are merged into, say
        raise ModelLoadError(f"special tokens of this tokenizer can't be escaped: {error}") from error
    return copied


def _with_names(tree: Any, names: Mapping[str, str]) -> Any:  # noqa: ANN401
    """A tokenizer's JSON with other names for its special tokens, wherever it speaks of them."""
    if isinstance(tree, dict):
        return {names.get(key, key): _with_names(each, names) for key, each in tree.items()}
    if isinstance(tree, list):
        return [_with_names(each, names) for each in tree]
    return names.get(tree, tree) if isinstance(tree, str) else tree
