"""The reward model itself: items to ids, ids to raw scores. Torch, but neither gRPC nor protos."""

from dataclasses import replace
from typing import Literal

import torch

from lm.digests import WeightsDigest, effective_tensors
from lm.errors import InputError
from lm.loading import load_reward_model
from lm.placement import DTYPE_NAMES, apply_threads, choose_placement
from lm.rewards import choose_reader, one_by_one
from lm.special_tokens import SpecialTokensInText, escape_special_tokens
from lm.tokenizer import Tokens, encode_chat, plain_tokens, tokenize_pair, tokenizer_sha256
from lm.truncation import cut
from services.batching import TOKEN_BUDGETS
from services.reward.items import Chat, Encoded, Ids, Item, ModelFacts, Pair


class RewardEngine:
    """A reward model in `AutoModelForSequenceClassification` format: decoder or encoder, any `num_labels`."""

    def __init__(
        self,
        model_id: str,
        device: str = "auto",
        dtype: str = "auto",
        threads: int = 0,
        special_tokens_in_text: SpecialTokensInText = "refuse",
        trust_remote_code: bool = False,
    ) -> None:
        """Loads the model. Raises InputError for a wrong placement, ModelLoadError for a wrong model."""
        placement = choose_placement(device, dtype, threads)
        apply_threads(placement)
        self._loaded = loaded = load_reward_model(model_id, placement, None, trust_remote_code)
        if special_tokens_in_text == "escape":
            escape_special_tokens(loaded.tokenizer)
        self._read = choose_reader(loaded.model)
        alone = "; items one by one, since a batch would change their scores" * (self._read is one_by_one)
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
            placement=f"{placement}{alone}",
            attributes=loaded.attributes,
        )

    def encode(self, item: Item, field: str, truncation: str = "error") -> Encoded:
        """What the model reads of an item; see services.reward.items.Engine."""
        tokens = self._tokens(item, field)
        limit = self.facts.context_length
        if not tokens.ids:
            raise InputError(field, "has no tokens; send a text that the model can read")
        if len(tokens.ids) <= limit:
            return self._encoded(tokens)
        if truncation == "error":
            count = f"has {len(tokens.ids)} tokens, the model reads at most {limit}"
            raise InputError(field, f"{count}; shorten it, or ask for truncation")
        side: Literal["left", "right"] = "left" if truncation == "left" else "right"
        kept = cut(self._keeping_eos(tokens), limit, side)
        lost = len(tokens.ids) - len(kept.ids)
        return replace(self._encoded(kept), truncated_tokens=lost, truncation=side)

    @torch.inference_mode()
    def score(self, batch: list[Encoded]) -> list[tuple[float, ...]]:
        """The raw outputs of each item of one batch."""
        ids, types = [item.ids for item in batch], [item.type_ids for item in batch]
        return [tuple(row) for row in self._read(self._loaded.model, ids, types).tolist()]

    def _tokens(self, item: Item, field: str) -> Tokens:
        loaded = self._loaded
        match item:
            case Pair(prompt, response):
                return tokenize_pair(
                    loaded.tokenizer,
                    prompt,
                    response,
                    pair_format=loaded.pair_format,
                    append_eos=loaded.append_eos,
                    field=f"{field}.pair",
                )
            case Chat(messages):
                path = f"{field}.chat.messages"
                if messages and not messages[-1][1]:
                    raise InputError(
                        f"{path}[{len(messages) - 1}].content", "is empty; send the turn to judge"
                    )
                return plain_tokens(
                    encode_chat(loaded.tokenizer, messages, add_generation_prompt=False, field=path)
                )
            case Ids(ids):
                self._check_ids(ids, f"{field}.token_ids")
                return plain_tokens(ids)

    def _check_ids(self, ids: list[int], path: str) -> None:
        if self._loaded.reads_types or self._read is one_by_one:
            raise InputError(path, "lack what the model's tokenizer adds to a text; send a pair")
        if not ids:
            raise InputError(f"{path}.ids", "is empty; send the ids of prompt and response")
        size = self.facts.vocabulary_size
        wrong = next((index for index, id_ in enumerate(ids) if not 0 <= id_ < size), None)
        if wrong is not None:
            raise InputError(f"{path}.ids[{wrong}]", f"is {ids[wrong]}, the vocabulary ends at {size - 1}")

    def _keeping_eos(self, tokens: Tokens) -> Tokens:
        """With the EOS that the model is read at out of a cut's reach, whoever put it there."""
        if not self._loaded.append_eos or tokens.ids[-1] != self._loaded.tokenizer.eos_token_id:
            return tokens
        return replace(tokens, segments=[*tokens.segments[:-1], None])

    def _encoded(self, tokens: Tokens) -> Encoded:
        types = tokens.type_ids if self._loaded.reads_types else None
        return Encoded.of(tokens.ids, types)
