"""Stages 1 and 2 alone: `python examples/film-reviews/models.py --folder /models --cache /models/data`.

    FOLDER/sft  FOLDER/reward    the two models; reward is made last, so that its presence says all is there
    CACHE/film-reviews           the data, PPO's prompts among it

For a cluster, where the services and PPO are pods of their own. Started again it goes on where it was.
"""

import logging
import multiprocessing
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import assets
import prepare
import typer
from stages import StageFailed, Stages

from trainer.outputs import read_json

STOPPED, FAILED = 75, 69
OVERRIDES = (("sft", "sft.micro_batch_size=8"), ("reward-model", "reward_model.micro_batch_size=8"))
"""Less memory, the same result."""


def main(
    folder: Annotated[Path, typer.Option(help="Where the models go.")],
    cache: Annotated[Path, typer.Option(help="Where packages and data are kept.")],
    seed: Annotated[int, typer.Option(min=0, help="Everything random follows from it.")] = 0,
) -> None:
    """Makes the SFT model and the reward model of the quickstart."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if (folder / "reward").exists():
        print(f"{folder} has its models already")
        return
    try:
        data = _in_a_process_of_its_own(cache)
        stages = Stages(folder, cache, seed, OVERRIDES)
        stages.sft(data, cache / assets.FOLDERS[assets.POLICY.name])
        stages.reward_model(data, read_json(data / "split.json")["ceiling"]["pair_accuracy"])
    except StageFailed as failure:
        raise SystemExit(failure.code) from None
    except assets.AssetError as error:
        print(error, file=sys.stderr)
        raise SystemExit(FAILED) from None


def prepare_all(cache: Path) -> Path:
    """Fetches and unpacks what the two stages read; returns the folder of the data."""
    for package in assets.missing(cache):
        if package is not assets.JUDGE:
            assets.fetch(package, cache)
    assets.policy_folder(cache)
    return prepare.prepare(cache)


def _in_a_process_of_its_own(cache: Path) -> Path:
    """`prepare_all`, whose gigabyte of memory is free again when training begins."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(prepare_all, (cache,))


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(STOPPED)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    typer.run(main)
