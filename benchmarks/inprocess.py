"""Contestants that have the model in the benchmark's own process."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.workload import Read, Text
from lm.errors import InputError
from lm.loading import load_tokenizer
from lm.placement import parse_dtype
from lm.tokenizer import decode
from services.plans import plan_batches
from services.reward.engine import RewardEngine
from services.reward.items import Encoded, Pair


class SortedLoop:
    """A loop that knows all texts beforehand: sorted by length, cut by a token budget."""

    name = "in process, sorted batches"

    def __init__(self, engine: RewardEngine, tokenizer: PreTrainedTokenizerBase) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self.note = f"one tokenizer call; batches of at most {engine.token_budget} padded tokens"

    def score(self, texts: Sequence[Text]) -> list[float]:
        """As Contestant.score."""
        ids = self._tokenizer([text.plain for text in texts])["input_ids"]
        scores = [0.0] * len(texts)
        for batch in plan_batches([len(each) for each in ids], self._engine.token_budget):
            outputs = self._engine.score([Encoded.of(ids[index]) for index in batch])
            for index, (output,) in zip(batch, outputs, strict=True):
                scores[index] = output
        return scores


class PaddedLoop:
    """The loop that a first attempt is: batches of one count as the texts come, padded to the longest."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self.name = f"in process, padded batches of {batch_size} as they come"
        self.note = "`tokenizer(…, padding=True)` and the model's own forward, without a KV cache"

    @torch.inference_mode()
    def score(self, texts: Sequence[Text]) -> list[float]:
        """As Contestant.score."""
        scores: list[float] = []
        for begin in range(0, len(texts), self._batch_size):
            batch = [text.plain for text in texts[begin : begin + self._batch_size]]
            inputs = self._tokenizer(batch, padding=True, return_tensors="pt")
            scores += self._model(**inputs, use_cache=False).logits[:, 0].float().tolist()
        return scores


class Pipeline:
    """transformers' own."""

    name = "transformers pipeline"
    note = (
        '`pipeline("text-classification", function_to_apply="none")` with batch_size=1, the default; with a '
        "larger one it pads as the padded loop does"
    )

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._pipeline: Any = transformers.pipeline(  # type: ignore[call-overload]
            "text-classification", model=model, tokenizer=tokenizer, function_to_apply="none"
        )

    def score(self, texts: Sequence[Text]) -> list[float]:
        """As Contestant.score."""
        return [float(found["score"]) for found in self._pipeline([text.plain for text in texts])]


class CrossEncoder:
    """sentence-transformers' scorer of pairs; sorts by length in characters."""

    name = "sentence-transformers CrossEncoder.predict"
    note = "batch_size=32, the default; asked not to use the tokenizer's chat template nor a sigmoid"

    def __init__(self, model_id: str, dtype: str) -> None:
        import sentence_transformers  # brings scikit-learn and SciPy, which take seconds

        self._encoder = sentence_transformers.CrossEncoder(
            model_id,
            device="cpu",
            activation_fn=nn.Identity(),
            model_kwargs={"dtype": parse_dtype(dtype)},
            processor_kwargs={"chat_template": None},
        )

    def score(self, texts: Sequence[Text]) -> list[float]:
        """As Contestant.score. The pair is ("", text): so no tokenizer can merge or split at its seam."""
        pairs = [("", text.plain) for text in texts]
        return [float(score) for score in self._encoder.predict(pairs, show_progress_bar=False)]


def reader(engine: RewardEngine, tokenizer: PreTrainedTokenizerBase) -> Read:
    """Makes texts whose forms all come to the ids that our service reads of the pair."""

    def read(prompt: str, response: str) -> Text | None:
        try:
            ids = tuple(engine.encode(Pair(prompt, response), "text").ids)
        except InputError:
            return None
        whole = decode(tokenizer, ids, skip_special_tokens=False)
        for plain in (whole, whole.removeprefix(str(tokenizer.bos_token or ""))):
            forms = tokenizer(plain)["input_ids"], tokenizer(whole, add_special_tokens=False)["input_ids"]
            if all(tuple(form) == ids for form in forms):
                return Text(prompt, response, ids, whole, plain)
        return None

    return read


def load_peer(model_id: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer as transformers' users load them."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        model_id, dtype=parse_dtype(dtype)
    )
    return model.eval(), load_tokenizer(model_id)
