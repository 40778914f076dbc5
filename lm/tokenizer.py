"""Text and conversations as token ids: one function each for rendering and tokenising, and its digests."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from transformers import BatchEncoding, PreTrainedTokenizerBase

from lm.errors import InputError

PAIR_FORMATS = ("chat", "concatenate", "text", "text_pair")
"""How prompt and response become one input; see tokenize_pair."""


@dataclass(frozen=True)
class Tokens:
    """Text as a model reads it, with what a cut must know of it; see lm.truncation."""

    ids: list[int]
    segments: list[int | None]
    """Of each id the text it belongs to, 0 or 1; None for a special token, which a cut keeps."""
    type_ids: list[int] | None = None
    """Token types, if the tokenizer has them."""


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest of what turns text into ids: vocabulary, merges, normalisation, added and special tokens.

    Not of the files' bytes, which change when a tokenizer is saved again. Padding, truncation and
    the chat template don't count.
    """
    content: dict[str, Any] = {
        "added": dict(sorted(tokenizer.get_added_vocab().items())),
        "eos": tokenizer.eos_token,
    }
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content["vocabulary"] = dict(sorted(tokenizer.get_vocab().items()))
    else:
        fast = json.loads(backend.to_str())
        content |= {key: fast.get(key) for key in ("model", "normalizer", "pre_tokenizer", "decoder")}
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def chat_template_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest of the chat template; empty without one."""
    template = tokenizer.chat_template
    if not template:
        return ""
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()


def refuse_special_tokens(tokenizer: PreTrainedTokenizerBase, text: str, field: str) -> None:
    """Raises InputError if `text` holds a special-token string: it would become control, not content."""
    found = _special_tokens(tokenizer).search(text)
    if found:
        raise InputError(field, f"holds the special token {found[0]!r}; remove it, or send token ids")


_found_special: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[tuple[object, ...], re.Pattern[str]]] = (
    WeakKeyDictionary()
)
"""Patterns by tokenizer: to list 256 special tokens takes as long as to tokenise a page."""


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    state = (len(tokenizer), *tokenizer.all_special_tokens)
    known = _found_special.get(tokenizer)
    if known and known[0] == state:
        return known[1]
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    strings = sorted({*tokenizer.all_special_tokens, *added} - {""}, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, strings)) or r"(?!)")
    _found_special[tokenizer] = (state, pattern)
    return pattern


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, field: str = "text") -> list[int]:
    """Ids of plain text, nothing added. Raises InputError for special-token strings in it."""
    refuse_special_tokens(tokenizer, text, field)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[tuple[str, str]],
    add_generation_prompt: bool,
    field: str = "messages",
) -> list[int]:
    """Ids of (role, content) turns under the tokenizer's own template.

    Raises InputError: no turns, no template, special tokens inside a turn, or a role the template refuses.
    """
    if not messages:
        raise InputError(field, "no messages; send at least one")
    if not tokenizer.chat_template:
        raise InputError(field, "the model's tokenizer has no chat template; send text or token ids")
    for index, (role, content) in enumerate(messages):
        refuse_special_tokens(tokenizer, role, f"{field}[{index}].role")
        refuse_special_tokens(tokenizer, content, f"{field}[{index}].content")
    turns = [{"role": role, "content": content} for role, content in messages]
    try:
        rendered = tokenizer.apply_chat_template(
            turns, add_generation_prompt=add_generation_prompt, tokenize=False
        )
    except Exception as error:  # a Jinja template may raise anything it likes
        raise InputError(field, f"the chat template refuses it: {error}") from error
    ids: list[int] = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    return ids


def encode_pair(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    response: str,
    *,
    pair_format: str,
    append_eos: bool,
    field: str = "pair",
) -> list[int]:
    """The ids of tokenize_pair."""
    return tokenize_pair(
        tokenizer, prompt, response, pair_format=pair_format, append_eos=append_eos, field=field
    ).ids


def tokenize_pair(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    response: str,
    *,
    pair_format: str,
    append_eos: bool,
    field: str = "pair",
) -> Tokens:
    """A prompt and a response for a reward model.

    `pair_format` "chat" makes them a user and an assistant turn; "concatenate" joins prompt and
    response ids as they are; "text" tokenises prompt + response as one text and "text_pair" as two, with
    the special tokens and types that the tokenizer itself gives them. `append_eos` ends all but a chat.
    Raises InputError, also for an empty response.
    """
    if not response:
        raise InputError(f"{field}.response", "is empty; send the text to judge")
    refuse_special_tokens(tokenizer, prompt, f"{field}.prompt")
    refuse_special_tokens(tokenizer, response, f"{field}.response")
    if pair_format == "chat":
        turns = [("user", prompt), ("assistant", response)]
        return plain_tokens(encode_chat(tokenizer, turns, add_generation_prompt=False, field=field))
    if pair_format == "concatenate":
        tokens = plain_tokens(
            encode_text(tokenizer, prompt, f"{field}.prompt")
            + encode_text(tokenizer, response, f"{field}.response")
        )
    elif pair_format == "text":
        refuse_special_tokens(tokenizer, prompt + response, field)
        tokens = _own_call(tokenizer, prompt + response)
    else:
        tokens = _own_call(tokenizer, prompt, response)
    return _with_eos(tokens, tokenizer.eos_token_id) if append_eos else tokens


def plain_tokens(ids: list[int]) -> Tokens:
    """Ids of which a cut may take any."""
    return Tokens(ids, [0] * len(ids))


def _own_call(tokenizer: PreTrainedTokenizerBase, *texts: str) -> Tokens:
    """What `tokenizer(*texts)` makes of one text or two."""
    encoding = tokenizer(*texts, return_special_tokens_mask=True)
    segments = encoding.sequence_ids(0) if encoding.is_fast else _segments(tokenizer, encoding, texts[0])
    return Tokens(encoding["input_ids"], segments, encoding.get("token_type_ids"))


def _segments(tokenizer: PreTrainedTokenizerBase, encoding: BatchEncoding, first: str) -> list[int | None]:
    """For tokenizers in Python, which only tell special tokens from others."""
    left = len(tokenizer(first, add_special_tokens=False)["input_ids"])
    segments: list[int | None] = []
    for special in encoding["special_tokens_mask"]:
        segments.append(None if special else int(left <= 0))
        left -= not special
    return segments


def _with_eos(tokens: Tokens, eos: int | None) -> Tokens:
    if eos is None or tokens.ids[-1:] == [eos]:
        return tokens
    types = None if tokens.type_ids is None else [*tokens.type_ids, tokens.type_ids[-1]]
    return Tokens([*tokens.ids, eos], [*tokens.segments, None], types)


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
    """Text of ids, spaces as they are."""
    return str(
        tokenizer.decode(
            list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
    )
