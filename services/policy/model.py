"""The model behind our own engine, loaded and described."""

from dataclasses import dataclass

from lm.loading import LoadedLM, load_causal_lm
from lm.placement import DTYPE_NAMES, apply_threads, choose_placement
from lm.special_tokens import SpecialTokensInText, escape_special_tokens
from lm.tokenizer import chat_template_sha256, tokenizer_sha256
from services.policy.interface import ModelFacts
from services.policy.model_weights import ModelWeights


@dataclass(frozen=True)
class ServedModel:
    """A policy with all that is known about it."""

    loaded: LoadedLM
    weights: ModelWeights
    facts: ModelFacts


def load_model(
    model_id: str,
    device: str = "auto",
    dtype: str = "auto",
    threads: int = 0,
    special_tokens_in_text: SpecialTokensInText = "refuse",
    trust_remote_code: bool = False,
) -> ServedModel:
    """Loads and hashes; blocks, and sets torch's threads, so it runs in the thread that will compute.

    Raises InputError for a wrong placement, ModelLoadError for a wrong model.
    """
    placement = choose_placement(device, dtype, threads)
    apply_threads(placement)
    loaded = load_causal_lm(model_id, placement, trust_remote_code)
    if special_tokens_in_text == "escape":
        escape_special_tokens(loaded.tokenizer)
    facts = ModelFacts(
        model_id=model_id,
        tokenizer_sha256=tokenizer_sha256(loaded.tokenizer),
        chat_template_sha256=chat_template_sha256(loaded.tokenizer),
        dtype=DTYPE_NAMES[placement.dtype],
        vocabulary_size=loaded.vocabulary_size,
        context_length=loaded.context_length,
        eos_token_ids=loaded.eos_token_ids,
        placement=str(placement),
    )
    return ServedModel(loaded, ModelWeights(loaded.model), facts)
