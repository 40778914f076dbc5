"""The held-out judge: how positive people would rate a sentence, from −4 to 4.

It must not be the reward model in disguise, so it shares nothing with it: another backbone (MiniLM, an
encoder), other sentences (the split's judge part) and the ratings of the other half of the raters. Two
SmolLM2 scorers would correlate at 0.91 and reward what the policy learnt to exploit.

    python examples/film-reviews/judge.py DATA BODY TARGET     trains it, once for all seeds; a fourth
                                                               argument is a process id to end with
    plugin = "examples/film-reviews/judge.py:Judge"            judges, in a trainer's TOML file

Shapes: B sentences, L tokens, H hidden size.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lm.loading import save_model
from lm.padding import right_pad
from lm.placement import Placement, apply_threads, autocast, choose_placement
from trainer.progress import track
from trainer.sampler import permutation
from trainer.stopping import end_with_parent

SETTINGS = {
    "epochs": 1,
    "batch_size": 16,
    "learning_rate": 1.5e-4,
    "head_factor": 10,
    "warmup": 0.1,
    "seed": 0,
}
CONTEXT = 128  # tokens; a sentence has about 30
TOGETHER = 64  # sentences scored in one forward pass
HEAD, RECORD = "head.safetensors", "judge.json"


class Scorer(nn.Module):
    """An encoder, the mean over its tokens, and a linear head."""

    def __init__(self, body: PreTrainedModel) -> None:
        """The head starts random, from a generator of its own."""
        super().__init__()
        self.body = body
        self.head = nn.Linear(body.config.hidden_size, 1)
        generator = torch.Generator().manual_seed(int(SETTINGS["seed"]))
        nn.init.normal_(self.head.weight, std=(body.config.hidden_size + 1) ** -0.5, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """float32 scores_B of token sequences."""
        ids_BL, lengths_B = right_pad(ids)
        mask_BL = torch.arange(ids_BL.shape[1]) < lengths_B[:, None]
        hidden_BLH = self.body(input_ids=ids_BL, attention_mask=mask_BL.long()).last_hidden_state.float()
        mean_BH = (hidden_BLH * mask_BL[..., None]).sum(1) / lengths_B[:, None]
        scores_B: Tensor = nn.functional.linear(mean_BH, self.head.weight, self.head.bias).squeeze(1)
        return scores_B


class Judge:
    """The plug-in: (prompts, responses) → how positive people would rate prompt and response together."""

    def __init__(self, folder: str) -> None:
        """Loads what `train` left in `folder`."""
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._scorer = Scorer(_body(Path(folder))).eval()
        self._scorer.head.load_state_dict(load_file(Path(folder) / HEAD))

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """One score each, on the raters' scale."""
        return self.score([prompt + response for prompt, response in zip(prompts, responses, strict=True)])

    @torch.no_grad()
    def score(self, texts: Sequence[str]) -> list[float]:
        """One score for each text."""
        ids = tokenise(self._tokenizer, texts)
        scores: list[float] = []
        for start in range(0, len(ids), TOGETHER):
            scores += self._scorer(ids[start : start + TOGETHER]).tolist()
        return scores


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text with the encoder's own special tokens."""
    ids: list[list[int]] = tokenizer([text.strip() for text in texts], truncation=True, max_length=CONTEXT)[
        "input_ids"
    ]
    return ids


def train(
    rows: Sequence[dict[str, Any]], body: Path, placement: Placement
) -> tuple[Scorer, PreTrainedTokenizerBase]:
    """Regression of the mean rating, embeddings frozen, one pass. The same rows give the same scorer."""
    tokenizer = AutoTokenizer.from_pretrained(body)
    scorer = Scorer(_body(body)).eval()  # eval: dropout off
    scorer.body.get_input_embeddings().requires_grad_(False)
    ids = tokenise(tokenizer, [row["text"] for row in rows])
    ratings = torch.tensor([float(row["score"]) for row in rows])
    mean, std = ratings.mean(), ratings.std()
    batches = [batch for epoch in range(int(SETTINGS["epochs"])) for batch in batches_of(ids, epoch)]
    optimiser = _optimiser(scorer)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _factor(step, len(batches)))
    for batch in track(batches, "training the judge"):
        with autocast(placement):
            scores_B = scorer([ids[index] for index in batch])
        loss = (scores_B - (ratings[batch] - mean) / std).square().mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    with torch.no_grad():  # back from standard scores to ratings
        scorer.head.weight *= std
        scorer.head.bias.mul_(std).add_(mean)
    return scorer, tokenizer


def batches_of(ids: Sequence[Sequence[int]], epoch: int) -> list[list[int]]:
    """Indices of one pass; shuffled, then sorted by length within eight batches to save padding."""
    size = int(SETTINGS["batch_size"])
    order = permutation(len(ids), int(SETTINGS["seed"]), epoch)
    windows = [order[start : start + 8 * size] for start in range(0, len(order), 8 * size)]
    sorted_ = [index for window in windows for index in sorted(window, key=lambda index: len(ids[index]))]
    return [sorted_[start : start + size] for start in range(0, len(sorted_), size)]


def _optimiser(scorer: Scorer) -> torch.optim.Optimizer:
    rate = SETTINGS["learning_rate"]
    body = [parameter for parameter in scorer.body.parameters() if parameter.requires_grad]
    head = {"params": list(scorer.head.parameters()), "lr": rate * SETTINGS["head_factor"]}
    return torch.optim.AdamW([{"params": body, "lr": rate}, head], weight_decay=0.0)


def _factor(step: int, total: int) -> float:
    """Linear warm-up, then linearly to 0."""
    warmup = SETTINGS["warmup"] * total
    return min((step + 1) / warmup, (total - step) / (total - warmup))


def pair_accuracy(judge: Judge, rankings: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Share of the pairs that people rank differently which the judge orders as they do."""
    right = pairs = 0
    for ranking in rankings:
        scores = judge.score(ranking["completions"])
        for (left, left_rank), (other, other_rank) in combinations(
            zip(scores, ranking["ranks"], strict=True), 2
        ):
            if left_rank != other_rank:
                pairs += 1
                right += (left > other) == (left_rank < other_rank)
    return {"mean": right / pairs, "pairs": pairs}


def ensure(data: Path, body: Path, target: Path, placement: Placement) -> dict[str, Any]:
    """Trains the judge into `target` unless it is there, of the same data and settings; returns its record.

    The record holds its pair accuracy on test sentences by the half of the raters it learnt from.
    """
    inputs = {
        "data_sha256": _sha256(data / "judge_train.jsonl"),
        "body_sha256": _sha256(body / "model.safetensors"),
        "settings": SETTINGS,
    }
    if (record := _record(target)) and record["inputs"] == inputs:
        return record
    apply_threads(placement)
    scorer, tokenizer = train(_rows(data / "judge_train.jsonl"), body, placement)
    scratch = target.with_name(f"{target.name}.part{os.getpid()}")
    scratch.mkdir(parents=True, exist_ok=True)  # in a container an interrupted run had the same id
    save_file(scorer.head.state_dict(), scratch / HEAD)
    save_model(scorer.body, tokenizer, scratch)  # last: it makes every file readable by everybody
    accuracy = pair_accuracy(Judge(str(scratch)), _rows(data / "rankings_heldout_labelers.jsonl"))
    record = {"inputs": inputs, "accuracy": accuracy}
    (scratch / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    shutil.rmtree(target, ignore_errors=True)
    scratch.rename(target)
    return record


def _record(folder: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return {}
    return record


def _body(folder: Path) -> PreTrainedModel:
    body: PreTrainedModel = AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False)
    return body


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    end_with_parent(int(sys.argv[4]) if len(sys.argv) > 4 else None)
    data, body, target = map(Path, sys.argv[1:4])
    accuracy = ensure(data, body, target, choose_placement())["accuracy"]
    print(f"{accuracy['mean']:.1%} of {accuracy['pairs']} pairs of unseen sentences ordered as people do")
