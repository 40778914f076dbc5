"""The reward model (Ouyang et al. 2022, sections 3.5 and C.2).

runs/NAME/reward           loads with AutoModelForSequenceClassification.from_pretrained
runs/NAME/evaluation.json  accuracy on held-out rankings, by K and for held-out labelers
runs/NAME/metrics.jsonl    runs/NAME/checkpoints
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lm.heads import reward_model_from
from lm.loading import load_causal_lm
from lm.placement import apply_threads, choose_placement
from trainer import checkpoints
from trainer.config import RunOptions
from trainer.examples import Example, RankedExamples
from trainer.identity import source_digests
from trainer.loop import Loop, Run, Stateful, StepResult, open_run
from trainer.optimisation import TrainedModel, schedule_factor
from trainer.outputs import export_model, write_json
from trainer.progress import show_table, waiting
from trainer.reward_model.config import RewardModelConfig
from trainer.reward_model.dataset import RankingData, separate_pad
from trainer.reward_model.evaluation import evaluation, measures, show_accuracies
from trainer.reward_model.loss import accumulate_gradient, all_scores
from trainer.sampler import EpochSampler, derived_seed
from trainer.servicer import serve_run

SHOWN = {"train/loss": "loss", "train/accuracy": "accuracy", "tokens_per_second": "tokens/s"}

logger = logging.getLogger(__name__)


def run(config: RewardModelConfig, options: RunOptions) -> None:
    """Trains to the end and evaluates, or says that it was done already."""
    opened = open_run(config, config.run, options)
    if opened.checkpoint and (config.run.folder / "evaluation.json").exists():
        logger.info("%s has finished already; its model is %s", config.run.name, _output(config))
        return
    with serve_run(opened.board, "reward_model", options, opened.stop):
        stage = RewardModelling(config, opened)
        if options.dry_run:
            stage.show_sizes()
        else:
            stage.train()
            with opened.stop:
                stage.finish()


def _output(config: RewardModelConfig) -> Path:
    return config.run.folder / "reward"


class RewardModelling:
    """One run of the stage."""

    def __init__(self, config: RewardModelConfig, opened: Run) -> None:
        """Loads model and data and restores the checkpoint."""
        self._config, self._disk = config, opened.disk
        self._placement = choose_placement(config.model.device, config.model.dtype, config.run.threads)
        apply_threads(self._placement)
        with waiting(f"loading {config.model.path}"):
            loaded = load_causal_lm(config.model.path, self._placement)
        logger.info("%s: %s", config.model.path, self._placement)
        self._tokenizer, self._data = loaded.tokenizer, RankingData(config, loaded)
        data = config.data
        digests = source_digests(
            loaded, {f"data.{key}": getattr(data, key) for key in type(data).model_fields}
        )
        head = torch.Generator().manual_seed(derived_seed(config.run.seed, "head"))
        pad = separate_pad(self._tokenizer)
        self._model = reward_model_from(loaded.model, config.model.layers, pad, head)
        section = config.reward_model
        self._trained = TrainedModel(
            self._model,
            config.model.trainable,
            section,
            section.learning_rate,
            section.head_learning_rate_factor,
        )
        self._sampler = EpochSampler(len(self._data.train), section.batch_size, config.run.seed)
        self._total = self._sampler.batches_per_epoch * section.num_train_epochs
        parts: dict[str, Stateful] = {"reward_model": self._trained, "sampler": self._sampler}
        self._loop = Loop("reward_model", opened, self._total, parts, digests)
        self._held_out: dict[str, Any] = {}

    def show_sizes(self) -> None:
        """Prints token statistics and effective sizes."""
        self._data.show()
        trained = sum(p.numel() for p in self._trained.parameters.values())
        section = self._config.reward_model
        epochs = section.num_train_epochs
        sizes = [
            (
                "batch",
                f"{section.batch_size} prompts, {section.micro_batch_size} completions in a forward pass",
            ),
            ("steps", f"{self._sampler.batches_per_epoch} an epoch × {epochs} = {self._total}"),
            ("parameters trained", f"{trained:,} of {self._model.num_parameters():,}"),
            ("runs on", self._placement),
        ]
        show_table("Effective sizes", ("", ""), sizes)

    def train(self) -> None:
        """Takes the steps that are left."""
        self._loop.run(self._take_step, self._after_step, SHOWN)

    def _take_step(self, step: int) -> StepResult:
        section = self._config.reward_model
        batch = [self._data.train[index] for index in self._sampler.next_batch()]
        factor = schedule_factor(step, self._total, section.warmup_steps, section.min_lr_rate)
        rate = section.learning_rate * factor
        scores = accumulate_gradient(self._model, self._placement, batch, section.micro_batch_size)
        norm = self._trained.gradient_norm()
        finite = math.isfinite(norm)
        if finite:
            self._trained.step(rate, norm)
        self._trained.clear_gradients()
        values = measures(scores, [ranking.ranks for ranking in batch], "train")
        values |= {"lr": rate, "grad_norm": norm, "epoch": self._sampler.epochs}
        tokens = sum(len(example) for ranking in batch for example in ranking.examples)
        return StepResult(values, skipped=not finite, tokens=tokens)

    def _after_step(self, done: int) -> Mapping[str, float]:
        """After an epoch: measures the held-out rankings."""
        if done % self._sampler.batches_per_epoch:
            return {}
        self._held_out = self._evaluate()
        return {name: value for each in self._held_out.values() for name, value in each["measures"].items()}

    def _evaluate(self) -> dict[str, Any]:
        """What evaluation.json holds of each held-out file; what several labelers ranked is scored once."""
        found = {}
        known: dict[tuple[Example, ...], Tensor] = {}
        for name, rankings in self._data.held_out.items():
            new = [ranking for ranking in rankings if ranking.examples not in known]
            with waiting(f"evaluating on {name}"):
                known |= zip((ranking.examples for ranking in new), self._scores(new), strict=True)
            scores = [known[ranking.examples] for ranking in rankings]
            ranks = [ranking.ranks for ranking in rankings]
            found[name] = evaluation(scores, ranks, name, self._config.run.seed)
        return found

    def _scores(self, rankings: Sequence[RankedExamples]) -> list[Tensor]:
        return all_scores(self._model, self._placement, rankings, self._config.reward_model.micro_batch_size)

    def finish(self) -> None:
        """Normalises, saves the model and writes evaluation.json, the mark that all is done.

        Raises DiskUnusable.
        """
        held_out = self._held_out or self._evaluate()
        mean, std = self._normalisation()
        settings = {
            "reward_mean": mean,
            "reward_std": std,
            "plaudit_pair_format": self._data.pair_format,
            "append_eos": True,
        }
        for key, value in settings.items():
            setattr(self._model.config, key, value)
        target, path = _output(self._config), self._config.run.folder / "evaluation.json"
        needed = checkpoints.size(self._model.state_dict())
        self._disk.write(target, needed, lambda: export_model(self._model, self._tokenizer, target))
        ceiling = self._config.reward_model.human_ceiling
        facts = {**settings, "human_ceiling": ceiling, **held_out}
        self._disk.write(path, 0, lambda: write_json(path, facts))
        show_accuracies(held_out, ceiling)
        logger.info("the reward model: %s", target)

    def _normalisation(self) -> tuple[float, float]:
        """(mean, std) such that (score − mean) / std is 0 on average on the demonstrations (N R3).

        std is 1 unless a gain is asked for.
        """
        if not self._data.demonstrations:
            return 0.0, 1.0
        scores = torch.cat(self._scores(self._data.demonstrations)).double()
        gain = self._config.reward_model.gain
        return float(scores.mean()), float(scores.std(correction=0)) if gain else 1.0
