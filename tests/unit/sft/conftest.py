"""Demonstrations of a few words each, and the configuration of a run over them."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.sft.config import SFTConfig

WORDS = ("the", "film", "is", "good", "dull", "lifeless", "wonderful", "story", "not", "seeing")


def write_demonstrations(path: Path, count: int, seed: int) -> Path:
    draw = random.Random(seed)
    lines = []
    for _ in range(count):
        prompt = " ".join(draw.choices(WORDS, k=3))
        completion = " " + " ".join(draw.choices(WORDS, k=draw.randint(1, 6)))
        lines.append(json.dumps({"prompt": prompt, "completion": completion}))
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def make_config(tmp_path: Path, tiny_policy: Path) -> Callable[..., SFTConfig]:
    """A configuration of two epochs of four steps each; keyword arguments go to its sections."""
    train = write_demonstrations(tmp_path / "train.jsonl", 14, 0)
    validation = write_demonstrations(tmp_path / "validation.jsonl", 5, 1)

    def make(name: str = "s", **sections: dict[str, Any]) -> SFTConfig:
        tree = {
            "run": {"name": name, "directory": str(tmp_path / "runs"), "checkpoint_every": 3, "threads": 1},
            "model": {"path": str(tiny_policy), "dtype": "float64", "device": "cpu"},
            "data": {"train": str(train), "validation": str(validation)},
            "sft": {"num_train_epochs": 2, "batch_size": 4, "learning_rate": 5e-3, "micro_batch_size": 3},
        }
        for section, keys in sections.items():
            tree[section] |= keys
        return SFTConfig.model_validate_json(json.dumps(tree))

    return make
