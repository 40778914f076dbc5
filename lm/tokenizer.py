"""Text and conversations as token ids: one function each for rendering and tokenising, and its digests."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from lm.errors import InputError


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
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    for token in (*tokenizer.all_special_tokens, *added):
        if token in text:
            raise InputError(field, f"holds the special token {token!r}; remove it, or send token ids")


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
    """Ids of a prompt and a response for a decoder reward model.

    `pair_format` "chat" makes them a user and an assistant turn; "concatenate" joins prompt and
    response ids as they are, and then `append_eos` ends them. Raises InputError, also for an empty response.
    """
    if not response:
        raise InputError(f"{field}.response", "is empty; send the text to judge")
    if pair_format == "chat":
        turns = [("user", prompt), ("assistant", response)]
        refuse_special_tokens(tokenizer, prompt, f"{field}.prompt")
        refuse_special_tokens(tokenizer, response, f"{field}.response")
        return encode_chat(tokenizer, turns, add_generation_prompt=False, field=field)
    ids = encode_text(tokenizer, prompt, f"{field}.prompt")
    ids += encode_text(tokenizer, response, f"{field}.response")
    if append_eos and tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    return ids


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
    """Text of ids, spaces as they are."""
    return str(
        tokenizer.decode(
            list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
    )
