"""Supervised fine-tuning (Ouyang et al. 2022, section 3.5 and C.1).

runs/NAME/epochs/K         the policy after each epoch
runs/NAME/policy           the chosen one; loads with from_pretrained
runs/NAME/evaluation.json  validation after each epoch, and what was chosen
runs/NAME/metrics.jsonl    runs/NAME/checkpoints
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import torch

from lm.loading import load_causal_lm
from lm.placement import apply_threads, choose_placement
from trainer import checkpoints
from trainer.config import RunOptions
from trainer.data import read_demonstrations
from trainer.errors import ConfigError, DataError
from trainer.examples import LENGTH_COLUMNS, Dropped, Example, Limits, encode_demonstrations, length_row
from trainer.identity import source_digests
from trainer.loop import Loop, Run, Stateful, StepResult, open_run
from trainer.optimisation import TrainedModel, schedule_factor
from trainer.outputs import copy_folder, export_model, read_json, write_json
from trainer.progress import show_table, waiting
from trainer.sampler import EpochSampler, derived_seed
from trainer.servicer import serve_run
from trainer.sft.config import SFTConfig
from trainer.sft.dropout import with_dropout
from trainer.sft.loss import accumulate_gradient, measure

SHOWN = {"train/loss": "loss", "train/token_accuracy": "accuracy", "tokens_per_second": "tokens/s"}

logger = logging.getLogger(__name__)


def run(config: SFTConfig, options: RunOptions) -> None:
    """Trains to the end, or says that it was done already.

    Raises TrainerError's and lm's errors.
    """
    _check(config)
    opened = open_run(config, config.run, options)
    evaluation = read_json(config.run.folder / "evaluation.json")
    if opened.checkpoint and evaluation.get("select") == config.sft.select:
        logger.info("%s has finished already; its policy is %s", config.run.name, _policy(config))
        return
    with serve_run(opened.board, "sft", options, opened.stop):
        stage = FineTuning(config, opened)
        if options.dry_run:
            stage.show_sizes()
        else:
            stage.train()
            with opened.stop:
                stage.select()


def _check(config: SFTConfig) -> None:
    select, epochs = config.sft.select, config.sft.num_train_epochs
    if select == "best_loss" and config.data.validation is None:
        raise ConfigError.at("sft.select", "best_loss needs data.validation")
    if isinstance(select, int) and select > epochs:
        raise ConfigError.at("sft.select", f"there is no epoch {select}; sft.num_train_epochs is {epochs}")


def _policy(config: SFTConfig) -> Path:
    return config.run.folder / "policy"


class FineTuning:
    """One run of the stage."""

    def __init__(self, config: SFTConfig, opened: Run) -> None:
        """Loads model and data and restores the checkpoint."""
        self._config, self._disk = config, opened.disk
        self._placement = choose_placement(config.model.device, config.model.dtype, config.run.threads)
        apply_threads(self._placement)
        with waiting(f"loading {config.model.path}"):
            self._loaded = load_causal_lm(config.model.path, self._placement)
        logger.info("%s: %s", config.model.path, self._placement)
        self._train, self._train_dropped = self._read(config.data.train)
        self._validation: list[Example] = []
        if config.data.validation:
            self._validation, _ = self._read(config.data.validation)
        files = {"data.train": config.data.train, "data.validation": config.data.validation}
        digests = source_digests(self._loaded, files)
        rates = {
            "residual_dropout": config.sft.residual_dropout,
            "attention_dropout": config.sft.attention_dropout,
        }
        self._model = with_dropout(self._loaded.model, rates)
        self._trained = TrainedModel(
            self._model, config.model.trainable, config.sft, config.sft.learning_rate
        )
        self._sampler = EpochSampler(len(self._train), config.sft.batch_size, config.run.seed)
        self._total = self._sampler.batches_per_epoch * config.sft.num_train_epochs
        parts: dict[str, Stateful] = {"policy": self._trained, "sampler": self._sampler}
        self._loop = Loop("sft", opened, self._total, parts, digests)

    def _read(self, path: Path) -> tuple[list[Example], Dropped]:
        sft = self._config.sft
        limits = Limits.within(
            self._loaded.context_length, sft.max_prompt_length, sft.max_length, "sft.max_length"
        )
        examples, dropped = encode_demonstrations(read_demonstrations(path), self._loaded.tokenizer, limits)
        if not examples:
            raise DataError(f"{path}: no demonstration fits; dropped: {dropped}")
        logger.info("%s: %d demonstrations, dropped: %s", path, len(examples), dropped)
        return examples, dropped

    def show_sizes(self) -> None:
        """Prints token statistics and effective sizes."""
        rows = [
            length_row("train: prompt", [example.start for example in self._train]),
            length_row("train: completion + EOS", [len(e) - e.start for e in self._train]),
        ]
        if self._validation:
            rows.append(length_row("validation: all", [len(example) for example in self._validation]))
        show_table("Demonstrations", LENGTH_COLUMNS, rows)
        trained = sum(p.numel() for p in self._trained.parameters.values())
        sft = self._config.sft
        sizes = [
            ("demonstrations", len(self._train)),
            ("dropped", self._train_dropped),
            ("batch", f"{sft.batch_size} demonstrations, {sft.micro_batch_size} in a forward pass"),
            ("steps", f"{self._sampler.batches_per_epoch} an epoch × {sft.num_train_epochs} = {self._total}"),
            ("parameters trained", f"{trained:,} of {self._model.num_parameters():,}"),
            ("runs on", self._placement),
        ]
        show_table("Effective sizes", ("", ""), sizes)

    def train(self) -> None:
        """Takes the steps that are left."""
        self._loop.run(self._take_step, self._after_step, SHOWN)

    def _take_step(self, step: int) -> StepResult:
        sft = self._config.sft
        batch = [self._train[index] for index in self._sampler.next_batch()]
        rate = sft.learning_rate * schedule_factor(step, self._total, sft.warmup_steps, sft.min_lr_rate)
        device = self._model.device
        seed = derived_seed(self._config.run.seed, "dropout", step)
        # Dropout knows only the global generators. Those of other GPUs, and their memory, stay untouched.
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            sums = accumulate_gradient(self._model, self._placement, batch, sft.micro_batch_size)
        norm = self._trained.gradient_norm()
        finite = math.isfinite(norm)
        if finite:
            self._trained.step(rate, norm)
        self._trained.clear_gradients()
        values = {"lr": rate, "grad_norm": norm, "epoch": self._sampler.epochs}
        tokens = sum(map(len, batch))
        return StepResult({**sums.measures("train"), **values}, skipped=not finite, tokens=tokens)

    def _after_step(self, done: int) -> Mapping[str, float]:
        """After an epoch: validates and keeps the weights."""
        epoch, rest = divmod(done, self._sampler.batches_per_epoch)
        if rest:
            return {}
        values = self._validate()
        self._export(self._config.run.folder / "epochs" / str(epoch))
        path = self._config.run.folder / "epochs.json"
        earlier = read_json(path) if epoch > 1 else {}
        self._disk.write(path, 0, lambda: write_json(path, {**earlier, str(epoch): values}))
        return values

    def _validate(self) -> dict[str, float]:
        if not self._validation:
            return {}
        training = self._model.training
        self._model.eval()
        with waiting("validating"):
            sums = measure(self._model, self._placement, self._validation, self._config.sft.micro_batch_size)
        self._model.train(training)
        return sums.measures("validation")

    def _export(self, folder: Path) -> None:
        needed = checkpoints.size(self._model.state_dict())
        self._disk.write(folder, needed, lambda: export_model(self._model, self._loaded.tokenizer, folder))

    def select(self) -> None:
        """Copies the chosen epoch to `policy` and writes evaluation.json. Raises DiskUnusable."""
        folder = self._config.run.folder
        epochs = read_json(folder / "epochs.json")
        chosen = _chosen(self._config, epochs)
        source, target, path = (
            folder / "epochs" / str(chosen),
            _policy(self._config),
            folder / "evaluation.json",
        )
        needed = checkpoints.size(self._model.state_dict())
        self._disk.write(target, needed, lambda: copy_folder(source, target))
        evaluation = {"select": self._config.sft.select, "epoch": chosen, "epochs": epochs}
        self._disk.write(path, 0, lambda: write_json(path, evaluation))
        logger.info("epoch %d is the policy: %s", chosen, target)


def _chosen(config: SFTConfig, epochs: Mapping[str, Mapping[str, float]]) -> int:
    select = config.sft.select
    if select == "last":
        return config.sft.num_train_epochs
    if select == "best_loss":
        return int(min(epochs, key=lambda epoch: epochs[epoch]["validation/loss"]))
    return select
