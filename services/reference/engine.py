"""The reference model itself: ids to log-probabilities. Torch, but neither gRPC nor protos."""

import torch

from lm.digests import WeightsDigest, effective_tensors
from lm.loading import load_causal_lm
from lm.logprobs import response_logprobs
from lm.placement import DTYPE_NAMES, apply_threads, choose_placement
from lm.tokenizer import tokenizer_sha256
from services.batching import TOKEN_BUDGETS
from services.reference.items import Item, ModelFacts


class ReferenceEngine:
    """A frozen causal language model."""

    def __init__(
        self,
        model_id: str,
        device: str = "auto",
        dtype: str = "auto",
        threads: int = 0,
        trust_remote_code: bool = False,
    ) -> None:
        """Loads the model. Raises InputError for a wrong placement, ModelLoadError for a wrong model."""
        placement = choose_placement(device, dtype, threads)
        apply_threads(placement)
        self._loaded = loaded = load_causal_lm(model_id, placement, trust_remote_code)
        self.token_budget = TOKEN_BUDGETS.get(placement.device.type, TOKEN_BUDGETS["cpu"])
        self.facts = ModelFacts(
            model_id=model_id,
            weights_sha256=WeightsDigest(effective_tensors(loaded.model)).hexdigest(),
            tokenizer_sha256=tokenizer_sha256(loaded.tokenizer),
            dtype=DTYPE_NAMES[placement.dtype],
            vocabulary_size=loaded.vocabulary_size,
            context_length=loaded.context_length,
            placement=str(placement),
        )

    @torch.inference_mode()
    def logprobs(self, items: list[Item]) -> list[list[float]]:
        """Per item one log-probability for each token from its start on, float32 at least."""
        sequences, starts = [item.ids for item in items], [item.start for item in items]
        (temperature,) = {item.temperature for item in items}
        flat_N = response_logprobs(self._loaded.model, sequences, starts, temperature)
        counts = [len(item.ids) - item.start for item in items]
        return [row.tolist() for row in flat_N.cpu().split(counts)]
