"""`python -m trainer ppo`: PPO against live services.

runs/NAME/policy         the trained policy; loads with from_pretrained
runs/NAME/policy-ema     its moving average, if ppo.ema_decay is set
runs/NAME/run.json       what was run, on what, with what, and how it ended
runs/NAME/metrics.jsonl  runs/NAME/evaluations  runs/NAME/checkpoints  runs/NAME/report.html
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from lm.placement import DTYPE_NAMES
from plaudit.clients.errors import PlauditError
from trainer.config import RunOptions
from trainer.errors import ServiceAway, ServiceUnreachable, TrainerError
from trainer.loop import Loop, Run, Stateful, StepResult, open_run
from trainer.metrics import SERVICES
from trainer.ppo.assembly import Parts, assemble
from trainer.ppo.cluster_policy import sole_trainer
from trainer.ppo.config import PPOConfig
from trainer.ppo.preflight import Clients
from trainer.ppo.products import Products
from trainer.ppo.roles import RoleUnavailable, StaleWeights
from trainer.ppo.sizes import show_sizes
from trainer.ppo.step import ppo_step
from trainer.progress import waiting
from trainer.servicer import serve_run
from trainer.tracing import span

SHOWN = {
    "objective/scores": "reward",
    "objective/kl": "KL",
    "response_length/mean": "length",
    "tokens_per_second": "tokens/s",
}
COUNTERS = ("dropped_rewards", "skipped_updates", "kl_stops")
NONE_ENDED = (
    "no response ended within %d tokens (sampling.response_length): all of them score %g (ppo.missing_eos), "
    "whatever they say"
)

logger = logging.getLogger(__name__)


def run(config: PPOConfig, options: RunOptions) -> None:
    """Trains to the end, or says that it was done already.

    Raises TrainerError's and lm's errors. ServiceAway, in the middle of a run, leaves a checkpoint.
    """
    opened = open_run(config, config.run, options)
    products = Products(config, opened.disk)
    if opened.checkpoint and products.finished:
        logger.info("%s has finished already; its policy is %s", config.run.name, products.policy)
        return
    clients = Clients.open(config.services)
    try:
        with serve_run(opened.board, "ppo", options, opened.stop), _role_errors():
            parts = assemble(config, opened.board.status.run_id, clients, opened.stop, opened.disk)
            show_sizes(config, parts)
            if not options.dry_run:
                with sole_trainer(config.services, opened.board.status.run_id, opened.stop):
                    stage = PPORun(config, opened, parts, products)
                    stage.train()
                    stage.finish()
    finally:
        clients.close()


@contextmanager
def _role_errors() -> Iterator[None]:
    """Errors of the roles, which know nothing of exit codes, as errors of the trainer."""
    try:
        yield
    except RoleUnavailable as error:
        raise ServiceAway(str(error)) from error
    except PlauditError as error:
        raise ServiceUnreachable(str(error)) from error
    except StaleWeights as error:
        raise WrongWeights(str(error)) from error


class WrongWeights(TrainerError):
    """A service answered with other weights than it must have; nothing was learned from that."""

    resumable = True


class PPORun:
    """The steps of one run, and what is around each."""

    def __init__(self, config: PPOConfig, opened: Run, parts: Parts, products: Products) -> None:
        """Restores the checkpoint, if there is one."""
        self._config, self._parts, self._products = config, parts, products
        self._stop = opened.stop
        stateful: dict[str, Stateful] = {
            "learner": parts.learner,
            "critic": parts.critic,
            "kl": parts.kl,
            "heldout": parts.heldout,
        }
        self._loop = Loop("ppo", opened, config.total_steps, stateful, parts.digests)

    def train(self) -> None:
        """Takes the steps that are left."""
        if self._parts.heldout.enough:
            self._loop.finish()
        self._loop.run(self._take_step, self._after_step, SHOWN, self._at_start)

    def finish(self) -> None:
        """Writes what the run leaves behind; run.json, the mark that all is done, comes last."""
        with self._stop:
            self._products.write(self._parts, self._loop.step, self._loop.changes)

    def _at_start(self) -> Mapping[str, float]:
        """The services get the learner's weights before anything is asked of them, resumed or not."""
        for role in SERVICES:
            self._loop.metrics.watch(f"waiting/{role}", partial(self._parts.patience.waits_for, role))
        with waiting("pushing weights"), span("push"):
            self._parts.remote_policy.start(self._loop.step)
        self._export_weights()
        return self._evaluate(self._loop.step)

    def _take_step(self, step: int) -> StepResult:
        parts, config = self._parts, self._config
        batch = parts.inputs.batch(parts.learner.episodes, config.ppo.batch_size, config.run.seed)
        with _role_errors():
            metrics = ppo_step(
                batch, parts.roles, parts.learner, parts.critic, parts.kl, config.ppo,
                seed=config.run.seed, collect_size=config.sampling.collect_size,
            )  # fmt: skip
        if config.ppo.missing_eos == "replace" and metrics["val/eos_rate"] == 0:
            logger.warning(NONE_ENDED, config.sampling.response_length, -config.ppo.missing_eos_penalty)
        counts = {name: metrics.pop(name) for name in COUNTERS}
        tokens = round(metrics["response_length/mean"] * config.ppo.batch_size)
        return StepResult(metrics, skipped=False, tokens=tokens, counts=counts)

    def _after_step(self, done: int) -> Mapping[str, float]:
        """New weights go out; on some steps they are judged."""
        policy, dtype = self._parts.remote_policy, self._parts.served
        began, bytes_before = time.perf_counter(), policy.bytes_pushed
        with _role_errors():
            with span("push"):
                policy.push(self._parts.learner.changed_tensors(dtype), done)
            pushed = time.perf_counter()
            self._export_weights()
            evaluated = self._evaluate(done)
        if self._parts.heldout.enough:
            logger.info(
                "no evaluation was better than that of step %d; the run ends", self._parts.heldout.best_step
            )
            self._loop.finish()
        times = {"time/push": pushed - began, "push_bytes": float(policy.bytes_pushed - bytes_before)}
        return {**times, **evaluated}

    def _export_weights(self) -> None:
        """Says to Prometheus what the services serve now."""
        parts, pushed = self._parts, self._parts.remote_policy.weights
        self._loop.metrics.model.set(
            str(self._config.model.path),
            pushed.sha256,
            parts.digests["tokenizer"],
            DTYPE_NAMES[parts.served],
            run_id=pushed.run_id,
            step=pushed.step,
        )

    def _evaluate(self, step: int) -> dict[str, float]:
        heldout = self._parts.heldout
        if not heldout.due(step, last=step == self._config.total_steps):
            return {}
        with waiting(f"evaluating step {step}"), span("evaluate"):
            measures = heldout.evaluate(step)
        self._loop.trackers.samples(step, heldout.samples)
        logger.info(
            "step %d on held-out prompts: %s", step, ", ".join(f"{k} {v:.4g}" for k, v in measures.items())
        )
        if heldout.best_step == step and self._config.evaluation.keep_best:
            self._products.keep_best(self._parts)
        return measures
