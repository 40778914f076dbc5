"""A run's metrics: one table of names, exported to Prometheus and to `metrics.jsonl`.

    objective/kl   →  gauge plaudit_ppo_objective_kl   and  {"step": 3, "time": …, "objective/kl": 4.2}
    time/generate  →  gauge plaudit_ppo_generate_seconds

The process's own figures (resident memory, open files, …) come with prometheus-client's names, versions and
weights under the names that the services have.
Only names of the table can be logged. Counters grow over the whole run, resumed or not; each line of the
file holds their values so far. PPO's names are TRL's where TRL has them; RECIPE section 4 defines them.
"""

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector

from services.rpc.metrics import ModelInfo, export_build_info
from services.rpc.metrics_endpoint import MetricsEndpoint
from services.rpc.options import OptionError, ServerOptions, join_address, parse_address
from trainer.config import RunOptions
from trainer.disk import Disk
from trainer.errors import ConfigError
from trainer.metrics_file import MetricsFile
from trainer.ports import security

Stage = Literal["sft", "reward_model", "ppo"]


@dataclass(frozen=True)
class Metric:
    """A row of the table."""

    name: str
    help: str
    kind: Literal["gauge", "counter"] = "gauge"


def _each(sets: Mapping[str, str], names: Mapping[str, str]) -> Iterator[Metric]:
    for prefix, where in sets.items():
        for name, text in names.items():
            yield Metric(f"{prefix}/{name}", f"{text} {where}")


SERVICES = ("policy", "reward", "reference", "judge")
"""Those that a PPO run asks; judges may be services."""

_COMMON = (
    Metric("step", "optimisation steps done (PPO: rollout-and-update iterations)"),
    Metric("total_steps", "steps that the configuration asks for"),
    Metric("last_step_timestamp_seconds", "when the last step ended, in seconds since 1970"),
    Metric("seconds_per_step", "wall time of the last step, in seconds"),
    Metric("checkpoint_seconds", "wall time of writing the last checkpoint, waits for the disk included"),
    Metric("disk_waiting", "1 while the run waits for a disk that is full or read-only, else 0"),
)
_OPTIMISER = (
    Metric("lr", "learning rate of the step"),
    Metric("grad_norm", "norm of the gradient before clipping"),
    Metric("epoch", "passes over the training data so far"),
    Metric("tokens_per_second", "tokens of the training sequences per second"),
    Metric("skipped_updates", "updates skipped because of a gradient that is not finite", "counter"),
)

SFT = (
    *_COMMON,
    *_OPTIMISER,
    *_each(
        {"train": "of the last step", "validation": "over the validation demonstrations"},
        {
            "loss": "mean negative log-likelihood per completion token, in nats,",
            "perplexity": "exp of the loss",
            "token_accuracy": "share of completion tokens that are the most likely one,",
            "eos_accuracy": "share of completions whose last token, the EOS, is the most likely one,",
        },
    ),
)

REWARD_MODEL = (
    *_COMMON,
    *_OPTIMISER,
    *_each(
        {
            "train": "of the last step",
            "validation": "over the held-out rankings",
            "heldout_labelers": "over the rankings of held-out labelers",
        },
        {
            "loss": "ranking loss: mean over prompts of the mean over their pairs, in nats,",
            "accuracy": "share of pairs whose preferred completion scores higher,",
            "margin": "mean of preferred minus other score",
            "chosen_mean": "mean score of the preferred completions of all pairs",
            "rejected_mean": "mean score of the other completions of all pairs",
            "reward_mean": "mean score of all completions",
            "reward_std": "standard deviation of the scores of all completions",
            "calibration_error": "expected calibration error of σ(score difference), 10 bins,",
        },
    ),
)

PPO = (
    *_COMMON,
    Metric(
        "objective/kl", "mean over sequences of the summed log-probability ratio to the reference, in nats"
    ),
    Metric("objective/entropy", "mean over sequences of the summed negative log-probability, in nats"),
    Metric("objective/scores", "mean score of the reward model, normalised"),
    Metric("objective/scores_std", "standard deviation of the scores over the sequences"),
    Metric("objective/non_score_reward", "mean over sequences of the summed KL penalty (negative)"),
    Metric("objective/rlhf_reward", "scores plus KL penalty: what PPO maximises"),
    Metric("objective/kl_coef", "β of the KL penalty in this step"),
    Metric("policy/approxkl_avg", "half the mean squared log-ratio to the policy of the rollout"),
    Metric("policy/clipfrac_avg", "share of tokens whose clipped policy loss is the larger"),
    Metric("policy/entropy_avg", "entropy of the next-token distribution, mean over tokens, in nats"),
    Metric("loss/policy_avg", "policy loss, mean over the step's updates"),
    Metric("loss/value_avg", "value loss, mean over the step's updates"),
    Metric("loss/ptx", "pretraining loss per token, in nats"),
    Metric("val/ratio", "mean probability ratio to the policy of the rollout"),
    Metric("val/ratio_var", "variance of that ratio"),
    Metric("val/ratio_first", "mean ratio in the first minibatch: 1 if the learner recomputed"),
    Metric("val/clipfrac_avg", "share of tokens whose clipped value loss is the larger"),
    Metric("val/explained_variance", "1 − Var(return − value) / Var(return), over tokens"),
    Metric("val/num_eos_tokens", "sequences that ended by themselves"),
    Metric("val/eos_rate", "share of sequences that ended by themselves"),
    Metric("response_length/mean", "mean response length, in tokens"),
    Metric("response_length/max", "longest response, in tokens"),
    Metric("response_length/clip_ratio", "share of responses cut at the limit"),
    Metric("mismatch/logprob_abs_mean", "mean |log-probability of learner − generator| on sampled tokens"),
    Metric("mismatch/logprob_abs_max", "largest |log-probability of learner − generator|"),
    Metric("mismatch/kl", "KL of generator to learner per token, by the k3 estimator, in nats"),
    Metric("policy_lag", "learner step minus the step that generated"),
    Metric("grad_norm/policy", "norm of the policy gradient before clipping"),
    Metric("grad_norm/value", "norm of the value gradient before clipping"),
    Metric("grad_norm/ptx", "norm of the pretraining gradient before it is added"),
    Metric("lr", "learning rate of the policy"),
    Metric("lr/value", "learning rate of the value model"),
    Metric("updates", "policy updates in the step; fewer than planned if the KL stop ended it"),
    Metric("episode", "episodes (prompts with a response) so far"),
    Metric("eps", "episodes per second"),
    Metric("tokens_per_second", "response tokens per second of the whole step"),
    Metric("time/generate", "seconds of the step spent in Generate"),
    Metric("time/score", "seconds of the step spent waiting for rewards"),
    Metric("time/reference", "seconds of the step spent waiting for reference log-probabilities"),
    Metric("time/learn", "seconds of the step spent in the learner"),
    Metric("time/push", "seconds of the step spent pushing weights"),
    Metric("push_bytes", "bytes of weights pushed in the step, to all replicas"),
    Metric("eval/scores", "mean score on the held-out prompts"),
    Metric("eval/judge", "mean score by the judge of evaluation.best_by on the held-out prompts"),
    Metric(
        "eval/win_rate", "share of held-out prompts on which that judge prefers it to the first evaluation"
    ),
    Metric("eval/kl", "mean KL per sequence to the reference on the held-out prompts, in nats"),
    Metric("eval/response_length", "mean response length on the held-out prompts, in tokens"),
    Metric("eval/eos_rate", "share of held-out responses that ended by themselves"),
    Metric("eval/distinct_2", "distinct bigrams / bigrams of the held-out responses"),
    Metric("skipped_updates", "updates skipped because of a gradient that is not finite", "counter"),
    *_each(
        {"waiting": "is away, or hasn't answered for long, and the run waits for it, else 0"},
        {role: f"1 while the {role}" for role in SERVICES},
    ),
    Metric("dropped_rewards", "sequences dropped because their reward could not be had", "counter"),
    Metric("kl_stops", "steps that the KL stop ended early", "counter"),
)

TABLES: Mapping[Stage, tuple[Metric, ...]] = {"sft": SFT, "reward_model": REWARD_MODEL, "ppo": PPO}


def prometheus_name(stage: Stage, name: str) -> str:
    """`plaudit_<stage>_` and the name with "/" as "_"; `time/x` and `seconds_per_x` are `x_seconds`.

    Counters are exported with `_total` behind it.
    """
    name = re.sub(r"^(?:time/|seconds_per_)(.+)", r"\1_seconds", name)
    return f"plaudit_{stage}_{name.replace('/', '_')}"


class RunMetrics:
    """The metrics of one run of one stage. Not thread-safe: the training loop owns it."""

    def __init__(
        self, stage: Stage, folder: Path, resume_step: int | None = None, disk: Disk | None = None
    ) -> None:
        """Opens `folder`/metrics.jsonl: anew, or cut behind `resume_step` with the counters restored.

        `disk` is the run's; without one nothing waits. Raises DiskUnusable.
        """
        disk = disk or Disk(0.0, folder)
        self.latest: dict[str, float] = {}
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        export_build_info(self.registry)
        self._stage: Stage = stage
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}
        self._counts: dict[str, float] = {}
        self._register()
        self._gauges["disk_waiting"].set_function(lambda: float(disk.waiting))
        self._file = MetricsFile(folder, disk, resume_step)
        for line in self._file.kept:
            self.show({name: value for name, value in line.items() if name in self._known})
        for name in self._counters:
            self.count(name, self.latest.get(name, 0))

    def _register(self) -> None:
        table = TABLES[self._stage]
        self._known = {metric.name for metric in table}
        for metric in table:
            name = prometheus_name(self._stage, metric.name)
            if metric.kind == "counter":
                self._counters[metric.name] = Counter(name, metric.help, registry=self.registry)
                self._counts[metric.name] = 0.0
            else:
                self._gauges[metric.name] = Gauge(name, metric.help, registry=self.registry)

    def log(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Sets the gauges `values` and appends one line for `step`; returns it, counters included.

        Raises KeyError for an unknown name, DiskUnusable.
        """
        unknown = sorted(set(values) - self._gauges.keys())
        if unknown:
            raise KeyError(f"not in the table of {self._stage} metrics: {', '.join(unknown)}")
        now = time.time()
        scalars = {name: float(value) for name, value in values.items()} | self._counts
        self.show(scalars | {"step": step, "last_step_timestamp_seconds": now})
        numbers = {name: _json_number(value) for name, value in scalars.items()}
        self._file.append({"step": step, "time": now, **numbers})
        return scalars

    def sync(self) -> None:
        """Has the lines so far outlast the machine. Raises DiskUnusable."""
        self._file.sync()

    def watch(self, name: str, look: Callable[[], float]) -> None:
        """Exports what `look` gives, in whatever thread it is asked for."""
        self._gauges[name].set_function(look)

    def count(self, name: str, amount: float = 1) -> None:
        """Adds to a counter; the next line shows it."""
        self._counters[name].inc(amount)
        self._counts[name] += amount

    @cached_property
    def model(self) -> ModelInfo:
        """The weights that were pushed last; exported once a stage that pushes has asked for it."""
        return ModelInfo(self.registry)

    def show(self, values: Mapping[str, float | None]) -> None:
        """Sets gauges without a line in the file."""
        for name, value in values.items():
            number = math.nan if value is None else float(value)
            self.latest[name] = number
            if name in self._gauges:
                self._gauges[name].set(number)

    def serve(self, told: RunOptions) -> str:
        """Exports to Prometheus at `told.metrics_address` and returns the address bound.

        Raises ConfigError if it is no address, taken, open to other machines in plaintext that nobody asked
        for, or if the certificate can't be used.
        """
        options = ServerOptions(
            metrics_address=told.metrics_address,
            insecure=told.insecure,
            security=security(told),
            metrics_plaintext=told.metrics_plaintext,
        )
        try:
            options.check()
            host, port = parse_address(told.metrics_address or "", "--metrics-address")
            endpoint = MetricsEndpoint(host, port, self.registry, options.metrics_security)
        except OptionError as error:
            raise ConfigError([str(error)]) from None
        except OSError as error:
            raise ConfigError.at("--metrics-address", f"{told.metrics_address}: {error}") from None
        return join_address(host, endpoint.port)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def _json_number(value: float) -> float | None:
    """JSON has no NaN and no infinity: null."""
    return value if math.isfinite(value) else None
