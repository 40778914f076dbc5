"""Loading and saving models in Hugging Face's formats, fit for their roles or not at all."""

import logging
import threading
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from lm.errors import ModelLoadError
from lm.folders import check_folder, first_line
from lm.logprobs import check_logits
from lm.placement import Placement
from lm.rewards import is_decoder
from lm.tokenizer import PAIR_FORMATS

# Our own one-line messages replace transformers' load reports and progress bars.
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
# What the libraries still say goes the way of the process's own lines, as text or JSON, not past them.
transformers_logging.disable_default_handler()
transformers_logging.enable_propagation()
logging.getLogger("huggingface_hub").handlers.clear()

log = logging.getLogger("lm.loading")

_one_at_a_time = threading.Lock()
"""transformers builds a model on a process-wide default device: two loads at once break each other."""

SCORE = "score.weight"
"""The head of a decoder's `AutoModelForSequenceClassification`."""
UNLIMITED_CONTEXT = 1 << 20
"""Stands in where a configuration states no context length."""


@dataclass(frozen=True)
class LoadedLM:
    """A causal language model in evaluation mode, with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    model_id: str
    vocabulary_size: int
    """Rows of the output layer: ids are below this."""
    context_length: int
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class LoadedReward:
    """A reward model in evaluation mode, with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    model_id: str
    vocabulary_size: int
    context_length: int
    reward_mean: float
    reward_std: float
    pair_format: str
    """One of lm.tokenizer.PAIR_FORMATS; see tokenize_pair there."""
    append_eos: bool
    attributes: tuple[str, ...]
    """Names of the outputs: "reward" for a model with one, else its configuration's labels."""
    reads_types: bool
    """Whether the model is given its tokenizer's token types."""


def load_causal_lm(model_id: str, placement: Placement, trust_remote_code: bool = False) -> LoadedLM:
    """Loads a folder or hub id, dropout off. Raises ModelLoadError with the reason in one line.

    Python that comes with the model runs with `trust_remote_code` only.
    """
    model, info = _load(AutoModelForCausalLM, model_id, placement, trust_remote_code)
    if info["missing_keys"]:
        raise ModelLoadError(
            f"{model_id}: weights lack {sorted(info['missing_keys'])[0]!r} and would be random"
        )
    if SCORE in info["unexpected_keys"]:  # with tied embeddings nothing is missing, and it would serve
        raise ModelLoadError(f"{model_id}: holds {SCORE!r}: this is a reward model, not a language model")
    tokenizer = load_tokenizer(model_id, trust_remote_code)
    _check_vocabulary(model_id, model, tokenizer)
    check_logits(model)
    return LoadedLM(
        model, tokenizer, model_id, _rows(model.get_output_embeddings()), context_length(model),
        _eos_token_ids(model, tokenizer),
    )  # fmt: skip


def load_reward_model(
    model_id: str, placement: Placement, outputs: int | None = 1, trust_remote_code: bool = False
) -> LoadedReward:
    """Loads a folder or hub id in `AutoModelForSequenceClassification` format.

    `outputs` is the `num_labels` it must have; None for any. Raises ModelLoadError; also where the head
    would be newly initialised, since such a model's scores mean nothing. Python that comes with the
    model runs with `trust_remote_code` only.
    """
    model, info = _load(AutoModelForSequenceClassification, model_id, placement, trust_remote_code)
    if info["missing_keys"]:
        name = sorted(info["missing_keys"])[0]
        raise ModelLoadError(
            f"{model_id}: {name!r} was newly initialised; this is not a trained reward model"
        )
    if outputs not in (None, model.config.num_labels):
        raise ModelLoadError(
            f"{model_id}: num_labels is {model.config.num_labels}; a reward model used here has {outputs}"
        )
    tokenizer = load_tokenizer(model_id, trust_remote_code)
    _check_vocabulary(model_id, model, tokenizer)
    config = model.config
    std = float(getattr(config, "reward_std", None) or 1.0)
    return LoadedReward(
        model, tokenizer, model_id, _rows(model.get_input_embeddings()), context_length(model),
        float(getattr(config, "reward_mean", None) or 0.0), std, _pair_format(model, tokenizer),
        bool(getattr(config, "append_eos", False)), _attributes(model), _reads_types(model, tokenizer),
    )  # fmt: skip


def load_tokenizer(model_id: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model. Raises ModelLoadError."""
    try:
        return AutoTokenizer.from_pretrained(model_id, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever a file or hub can do wrong
        raise ModelLoadError(f"{model_id}: no tokenizer: {first_line(error)}") from error


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes safetensors, configuration and tokenizer, readable by everybody (containers run as others)."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


def dropout_off(model: nn.Module) -> None:
    """Evaluation mode for dropout wherever it hides: a learner trains with `eval()` set."""
    model.eval()


def context_length(model: PreTrainedModel) -> int:
    """Most tokens the configuration allows; less by the positions that a RoBERTa keeps for its padding."""
    config = model.config.get_text_config()
    for key in ("max_position_embeddings", "n_positions"):
        value = getattr(config, key, None) or 0
        if value > 0:
            return int(value) - _padding_positions(model)
    return UNLIMITED_CONTEXT


AutoKind = type[AutoModelForCausalLM] | type[AutoModelForSequenceClassification]


def _load(
    kind: AutoKind, model_id: str, placement: Placement, trust_remote_code: bool
) -> tuple[PreTrainedModel, dict[str, Any]]:
    check_folder(model_id)
    if trust_remote_code:
        log.warning("%s: Python that comes with this model runs here, as trust_remote_code asks", model_id)
    try:
        with _one_at_a_time:
            loaded: Any = kind.from_pretrained(
                model_id, dtype=placement.dtype, use_safetensors=True, output_loading_info=True,
                trust_remote_code=trust_remote_code,
            )  # fmt: skip
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, RuntimeError, …
        nowhere = "" if Path(model_id).exists() else "no such folder, and from the hub: "
        raise ModelLoadError(f"{model_id}: {nowhere}{first_line(error)}") from error
    model, info = loaded
    model = model.to(placement.device)
    dropout_off(model)
    model.requires_grad_(False)
    return model, info


def _check_vocabulary(model_id: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = _rows(model.get_input_embeddings())
    if len(tokenizer) > rows:
        raise ModelLoadError(f"{model_id}: the tokenizer has {len(tokenizer)} tokens, the model {rows} rows")


def _rows(embeddings: nn.Module) -> int:
    """Vocabulary rows of an input embedding or an output layer."""
    return int(embeddings.get_parameter("weight").shape[0])


def _eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """From the generation configuration, else the model's, and always the tokenizer's."""
    stated = model.generation_config.eos_token_id if model.generation_config else None
    stated = model.config.get_text_config().eos_token_id if stated is None else stated
    ids = set(stated) if isinstance(stated, list) else {stated}
    return tuple(sorted(id_ for id_ in ids | {tokenizer.eos_token_id} if id_ is not None))


def _pair_format(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    stated: str | None = getattr(model.config, "plaudit_pair_format", None)
    if stated and stated not in PAIR_FORMATS:
        raise ModelLoadError(f"plaudit_pair_format is {stated!r}; use one of {', '.join(PAIR_FORMATS)}")
    if stated:
        return stated
    if not is_decoder(model):
        return "text_pair"
    return "chat" if tokenizer.chat_template else "text"


def _attributes(model: PreTrainedModel) -> tuple[str, ...]:
    count = int(model.config.num_labels or 1)
    if count == 1:
        return ("reward",)
    labels = {int(at): name for at, name in (model.config.id2label or {}).items()}
    names = tuple(labels.get(at, f"LABEL_{at}") for at in range(count))
    if len(set(names)) < count:
        raise ModelLoadError(f"id2label gives two outputs one name: {', '.join(names)}")
    return names


def _reads_types(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    return (
        not is_decoder(model)
        and "token_type_ids" in tokenizer.model_input_names
        and "token_type_ids" in signature(model.forward).parameters
        and getattr(model.config, "type_vocab_size", 2) > 1
    )


def _padding_positions(model: PreTrainedModel) -> int:
    """A RoBERTa's first token has the position after its pad's id: so many of its table are never read."""
    for name, module in model.named_modules():
        pad = getattr(module, "padding_idx", None)
        if name.endswith(".position_embeddings") and pad is not None:
            return int(pad) + 1
    return 0
