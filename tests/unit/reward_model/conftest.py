"""Rankings by a rule that a tiny model can learn, and the configuration of a run over them."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.reward_model.config import RewardModelConfig

GOOD, BAD, PLAIN = ("good", "wonderful"), ("dull", "lifeless"), ("film", "story", "seeing", "the")


def sentence(draw: random.Random) -> str:
    return " " + " ".join(draw.choices(GOOD + BAD + PLAIN, k=draw.randint(2, 5)))


def value(text: str) -> int:
    words = text.split()
    return sum(word in GOOD for word in words) - sum(word in BAD for word in words)


def ranking(draw: random.Random) -> dict[str, Any]:
    completions = [sentence(draw) for _ in range(draw.randint(2, 5))]
    values = [value(text) for text in completions]
    ranks = [1 + sum(other > own for other in values) for own in values]
    return {"prompt": draw.choice(["the film is", "what a"]), "completions": completions, "ranks": ranks}


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


@pytest.fixture
def make_config(tmp_path: Path, tiny_policy: Path) -> Callable[..., RewardModelConfig]:
    """A configuration of one epoch; keyword arguments go to its sections."""
    draw = random.Random(0)
    files = {
        "train": write_lines(tmp_path / "train.jsonl", [ranking(draw) for _ in range(40)]),
        "validation": write_lines(tmp_path / "validation.jsonl", [ranking(draw) for _ in range(12)]),
        "demonstrations": write_lines(
            tmp_path / "demonstrations.jsonl",
            [{"prompt": "the film is", "completion": sentence(draw)} for _ in range(9)],
        ),
    }

    def make(name: str = "r", **sections: dict[str, Any]) -> RewardModelConfig:
        tree: dict[str, dict[str, Any]] = {
            "run": {"name": name, "directory": str(tmp_path / "runs"), "checkpoint_every": 3, "threads": 1},
            "model": {"path": str(tiny_policy), "dtype": "float64", "device": "cpu"},
            "data": {key: str(path) for key, path in files.items()},
            "reward_model": {"batch_size": 6, "learning_rate": 3e-3, "micro_batch_size": 8},
        }
        for section, keys in sections.items():
            tree[section] |= keys
        return RewardModelConfig.model_validate_json(json.dumps(tree))

    return make
