"""The reward model itself: items to ids, ids to raw scores. Torch, but neither gRPC nor protos."""

import torch

from lm.digests import WeightsDigest, effective_tensors
from lm.errors import InputError, ModelLoadError
from lm.loading import load_reward_model
from lm.placement import DTYPE_NAMES, apply_threads, choose_placement
from lm.rewards import is_decoder, sequence_scores
from lm.tokenizer import encode_chat, encode_pair, tokenizer_sha256
from services.batching import TOKEN_BUDGETS
from services.reward.items import Chat, Ids, Item, ModelFacts, Pair


class RewardEngine:
    """A decoder reward model in `AutoModelForSequenceClassification(num_labels=1)` format."""

    def __init__(self, model_id: str, device: str = "auto", dtype: str = "auto", threads: int = 0) -> None:
        """Loads the model. Raises InputError for a wrong placement, ModelLoadError for a wrong model."""
        placement = choose_placement(device, dtype, threads)
        apply_threads(placement)
        self._loaded = loaded = load_reward_model(model_id, placement)
        if not is_decoder(loaded.model):
            kind = loaded.model.config.model_type
            raise ModelLoadError(f"{model_id}: {kind!r} is an encoder; only decoder reward models are served")
        self.token_budget = TOKEN_BUDGETS.get(placement.device.type, TOKEN_BUDGETS["cpu"])
        self.facts = ModelFacts(
            model_id=model_id,
            weights_sha256=WeightsDigest(effective_tensors(loaded.model)).hexdigest(),
            tokenizer_sha256=tokenizer_sha256(loaded.tokenizer),
            dtype=DTYPE_NAMES[placement.dtype],
            vocabulary_size=loaded.vocabulary_size,
            context_length=loaded.context_length,
            reward_mean=loaded.reward_mean,
            reward_std=loaded.reward_std,
            has_chat_template=bool(loaded.tokenizer.chat_template),
            placement=str(placement),
        )

    def encode(self, item: Item, field: str) -> list[int]:
        """Ids the model reads; nothing is ever cut off. Raises InputError with paths below `field`."""
        ids = self._ids(item, field)
        limit = self.facts.context_length
        if len(ids) > limit:
            raise InputError(field, f"has {len(ids)} tokens, the model reads at most {limit}; shorten it")
        return ids

    @torch.inference_mode()
    def score(self, sequences: list[list[int]]) -> list[float]:
        """Raw scores of one batch."""
        scores: list[float] = sequence_scores(self._loaded.model, sequences).tolist()
        return scores

    def _ids(self, item: Item, field: str) -> list[int]:
        tokenizer = self._loaded.tokenizer
        match item:
            case Pair(prompt, response):
                return encode_pair(
                    tokenizer,
                    prompt,
                    response,
                    pair_format=self._loaded.pair_format,
                    append_eos=self._loaded.append_eos,
                    field=f"{field}.pair",
                )
            case Chat(messages):
                path = f"{field}.chat.messages"
                if messages and not messages[-1][1]:
                    raise InputError(
                        f"{path}[{len(messages) - 1}].content", "is empty; send the turn to judge"
                    )
                return encode_chat(tokenizer, messages, add_generation_prompt=False, field=path)
            case Ids(ids):
                return self._check_ids(ids, f"{field}.token_ids.ids")

    def _check_ids(self, ids: list[int], path: str) -> list[int]:
        if not ids:
            raise InputError(path, "is empty; send the ids of prompt and response")
        size = self.facts.vocabulary_size
        wrong = next((index for index, id_ in enumerate(ids) if not 0 <= id_ < size), None)
        if wrong is not None:
            raise InputError(f"{path}[{wrong}]", f"is {ids[wrong]}, the vocabulary ends at {size - 1}")
        return ids
