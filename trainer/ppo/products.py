"""What a PPO run leaves behind."""

import json
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer import checkpoints
from trainer.disk import Disk
from trainer.metrics_file import FILE_NAME, read_lines
from trainer.outputs import copy_folder, export_model, read_json, write_json
from trainer.ppo.assembly import Parts
from trainer.ppo.config import PPOConfig
from trainer.progress import show_table, waiting
from trainer.report.build import build_report

PACKAGES = ("torch", "transformers", "grpcio", "protobuf", "numpy")
LAST_ROWS = ("objective/scores", "objective/kl", "policy/entropy_avg", "val/explained_variance",
             "response_length/mean", "val/eos_rate", "objective/kl_coef")  # fmt: skip


class Products:
    """The files of one run."""

    def __init__(self, config: PPOConfig, disk: Disk) -> None:
        """`disk` is the run's."""
        self._config, self._disk = config, disk
        self._folder = config.run.folder
        self.policy = self._folder / "policy"
        """The trained policy: of the last step, or of the best evaluation if that is what to keep."""
        self._best = self._folder / "best"
        self._run = self._folder / "run.json"

    @property
    def finished(self) -> bool:
        """Whether the run has ended as configured."""
        return bool(read_json(self._run))

    def keep_best(self, parts: Parts) -> None:
        """Sets the policy aside as the best so far."""
        self._export(parts, self._best)

    def write(self, parts: Parts, steps: int, changes: Sequence[Mapping[str, Any]]) -> None:
        """Everything, run.json last: it says that the rest is whole. `changes` are those of the whole run.

        Raises DiskUnusable.
        """
        with waiting("saving the policy"):
            if self._config.evaluation.keep_best and self._best.is_dir():
                self._disk.write(self.policy, _size(parts), lambda: copy_folder(self._best, self.policy))
            else:
                self._export(parts, self.policy)
            if self._config.ppo.ema_decay:
                self._export_average(parts)
        lines = read_lines(self._folder / FILE_NAME)
        facts = {**self._facts(parts, steps, lines), "changes": list(changes)}
        self._disk.write(self._folder, 0, lambda: self._report(facts))
        self._disk.write(self._run, 0, lambda: write_json(self._run, facts))
        self._show(lines)

    def _report(self, facts: Mapping[str, Any]) -> None:
        build_report(
            self._folder / "report.html",
            title=f"PPO: {self._config.run.name}",
            metrics={"PPO": self._folder / FILE_NAME},
            facts={key: facts[key] for key in ("run_id", "steps", "episodes", "seconds", "policy_step")},
        )

    def _export_average(self, parts: Parts) -> None:
        with _weights_of(parts.policy.model, parts.learner.changed_tensors(torch.float32, averaged=True)):
            self._export(parts, self._folder / "policy-ema")

    def _export(self, parts: Parts, folder: Path) -> None:
        policy = parts.policy
        self._disk.write(folder, _size(parts), lambda: export_model(policy.model, policy.tokenizer, folder))

    def _facts(self, parts: Parts, steps: int, lines: list[dict[str, Any]]) -> dict[str, Any]:
        keep_best = self._config.evaluation.keep_best
        return {
            "name": self._config.run.name,
            "run_id": parts.run_id,
            "steps": steps,
            "episodes": parts.learner.episodes,
            "seconds": sum(line.get("seconds_per_step", 0.0) for line in lines),
            "policy_step": parts.heldout.best_step if keep_best else steps,
            "judged_weights": "live",
            "kl_coef": parts.kl.value,
            "metrics": lines[-1] if lines else {},
            "config": json.loads(self._config.model_dump_json()),
            "digests": parts.digests,
            "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        }

    def _show(self, lines: list[dict[str, Any]]) -> None:
        steps = [line for line in lines if "objective/kl" in line]
        if steps:
            rows = [(name, steps[0].get(name, ""), steps[-1].get(name, "")) for name in LAST_ROWS]
            show_table(self._config.run.name, ("metric", "first step", "last step"), rows)
        print(f"policy: {self.policy}\nreport: {self._folder / 'report.html'}")


@contextmanager
def _weights_of(model: torch.nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[None]:
    """The model with some of its parameters replaced, for a while."""
    parameters = dict(model.named_parameters())
    kept = {}
    with torch.no_grad():
        for name, tensor in tensors:
            kept[name] = parameters[name].detach().clone()
            parameters[name].copy_(tensor)
        try:
            yield
        finally:
            for name, tensor in kept.items():
                parameters[name].copy_(tensor)


def _size(parts: Parts) -> int:
    """Bytes of the policy."""
    return checkpoints.size(parts.policy.model.state_dict())
