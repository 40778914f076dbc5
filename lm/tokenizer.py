"""Text and conversations as token ids: one function each for rendering and tokenising, and its digests."""

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerBase

from lm.errors import InputError
from lm.special_tokens import (
    control_tokens,
    escape_of,
    reader_of,
    refuse_control_ids,
    refuse_special_tokens,
)

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


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, field: str = "text") -> list[int]:
    """Ids of plain text, nothing added. Raises InputError for special tokens that aren't escaped."""
    refuse_special_tokens(tokenizer, text, field)
    ids = _ids(reader_of(tokenizer), text)
    refuse_control_ids(tokenizer, ids, field)
    return ids


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """`tokenizer(text, add_special_tokens=False)["input_ids"]`, without what else that call makes: it takes
    twice as long as the tokenising of a short text."""
    backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
    if (
        backend is None
        or backend.padding
        or backend.truncation
        or backend.encode_special_tokens != tokenizer.split_special_tokens
    ):
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return list(backend.encode(text, add_special_tokens=False).ids)


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[tuple[str, str]],
    add_generation_prompt: bool,
    field: str = "messages",
) -> list[int]:
    """Ids of (role, content) turns under the tokenizer's own template.

    Raises InputError: no turns, no template, a role the template refuses, or special tokens inside a turn,
    unless they are escaped.
    """
    if not messages:
        raise InputError(field, "no messages; send at least one")
    if not tokenizer.chat_template:
        raise InputError(field, "the model's tokenizer has no chat template; send text or token ids")
    for index, (role, content) in enumerate(messages):
        refuse_special_tokens(tokenizer, role, f"{field}[{index}].role")
        refuse_special_tokens(tokenizer, content, f"{field}[{index}].content")
    escape, pattern = escape_of(tokenizer), control_tokens(tokenizer).pattern
    if escape:
        messages = [(escape.marked(role), escape.marked(content)) for role, content in messages]
    rendered = _rendered(tokenizer, messages, add_generation_prompt, field)
    controls = len(pattern.findall(rendered))
    # Turns that meet without anything between them could make one together: kept apart, they make fewer.
    fence = secrets.token_hex(8)
    apart = [(role, f"{fence}{content}{fence}") for role, content in messages]
    if controls > len(pattern.findall(_rendered(tokenizer, apart, add_generation_prompt, field))):
        raise InputError(field, "make a special token where two of them meet; put a space there")
    text = escape.named(rendered) if escape else rendered
    ids = _ids(reader_of(tokenizer), text)
    refuse_control_ids(tokenizer, ids, field, allowed=controls)
    return ids


def _rendered(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[tuple[str, str]],
    add_generation_prompt: bool,
    field: str,
) -> str:
    turns = [{"role": role, "content": content} for role, content in messages]
    try:
        return str(
            tokenizer.apply_chat_template(turns, add_generation_prompt=add_generation_prompt, tokenize=False)
        )
    except Exception as error:  # a Jinja template may raise anything it likes
        quotes = any(content and content in str(error) for _, content in messages)
        reason = "" if quotes else f": {error}"  # what people wrote is in no error
        raise InputError(field, f"the chat template refuses it{reason}") from error


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
    if pair_format != "concatenate":  # there encode_text looks for itself
        refuse_special_tokens(tokenizer, prompt, f"{field}.prompt")
        refuse_special_tokens(tokenizer, response, f"{field}.response")
    if pair_format == "chat":
        turns = [("user", prompt), ("assistant", response)]
        return plain_tokens(encode_chat(tokenizer, turns, add_generation_prompt=False, field=field))
    if pair_format == "concatenate":
        ids = encode_text(tokenizer, prompt, f"{field}.prompt")
        tokens = plain_tokens(ids + encode_text(tokenizer, response, f"{field}.response"))
    elif pair_format == "text":
        refuse_special_tokens(tokenizer, prompt + response, field)
        tokens = _own_call(tokenizer, field, prompt + response)
    else:
        tokens = _own_call(tokenizer, field, prompt, response)
    return _with_eos(tokens, tokenizer.eos_token_id) if append_eos else tokens


def plain_tokens(ids: list[int]) -> Tokens:
    """Ids of which a cut may take any."""
    return Tokens(ids, [0] * len(ids))


def _own_call(tokenizer: PreTrainedTokenizerBase, field: str, *texts: str) -> Tokens:
    """What `tokenizer(*texts)` makes of one text or two."""
    encoding = reader_of(tokenizer)(*texts, return_special_tokens_mask=True)
    segments = encoding.sequence_ids(0) if encoding.is_fast else _segments(tokenizer, encoding, texts[0])
    own = [id_ for id_, segment in zip(encoding["input_ids"], segments, strict=True) if segment is not None]
    refuse_control_ids(tokenizer, own, field)
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
