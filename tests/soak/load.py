"""Callers that go on calling, and what became of every call."""

import threading
import time
from collections import Counter
from functools import partial
from operator import eq

import torch
from policy_fleet import CPU, named_fleet, remote_policy

from lm.digests import WeightsDigest, effective_tensors
from lm.loading import load_causal_lm
from plaudit import (
    InvalidArgument,
    ItemFailure,
    Overloaded,
    PlauditError,
    PolicyClient,
    ReferenceClient,
    RewardClient,
)
from trainer.ppo.roles import RoleUnavailable

DEADLINE_S, PUSH_PATIENCE_S = 5.0, 5.0
SLACK_S = 5.0
"""By how much a call may outlast its deadline on a machine that has other things to do."""
PAUSE_S, PUSH_PAUSE_S = 0.05, 1.0
ITEMS = [("the film is", " good"), ("a dull", " story"), ("what a", " wonderful performance")]
STREAM = [("the film", f" number {number}") for number in range(48)]
SEQUENCES, STARTS = [[5, 6, 7, 8, 9], [10, 11, 12]], [2, 1]
PROMPTS = ["the film", "a dull"]


class Tally:
    """Of the calls of one kind; safe to use from several threads."""

    def __init__(self):
        self._lock = threading.Lock()
        self.counts = Counter()
        self.causes = Counter()
        self.wrong, self.late = [], []

    def count(self, outcome):
        with self._lock:
            self.counts[outcome] += 1

    @property
    def adds_up(self):
        c = self.counts
        return c["sent"] == c["answered"] + c["rejected"] + c["failed"]


class Kind:
    """Calls of one kind: `ask` makes one and returns what must be the same each time, by equality."""

    def __init__(self, name, ask, longest=DEADLINE_S, pause=PAUSE_S, check=None, is_bad=False):
        self.name, self.tally, self.is_bad = name, Tally(), is_bad
        self.ask, self._longest, self._pause = ask, longest, pause
        self._check = check or partial(eq, ask())

    def call(self):
        """Makes one and counts it."""
        self.tally.count("sent")
        began = time.monotonic()
        try:
            answer = self.ask()
        except (Overloaded, InvalidArgument):
            self.tally.count("rejected")
        except (PlauditError, RoleUnavailable) as error:
            self.tally.count("failed")
            cause = error.__cause__ if isinstance(error, RoleUnavailable) else error
            self.tally.causes[type(cause).__name__] += 1
        except Exception as error:  # none that a caller has been told of
            self.tally.count("failed")
            self.tally.wrong.append(repr(error)[:200])
        else:
            self.tally.count("answered")
            if not self._check(answer):
                self.tally.wrong.append(repr(answer)[:200])
        if (seconds := time.monotonic() - began) > self._longest + SLACK_S:
            self.tally.late.append(seconds)

    def run(self, over):
        while not over.is_set():
            self.call()
            over.wait(self._pause)


class Pusher:
    """Pushes a new step now and then, as a trainer does; knows the digest of each."""

    def __init__(self, site, folder):
        self._learner = load_causal_lm(str(folder / "sft"), CPU).model
        self._original = {name: tensor.clone() for name, tensor in effective_tensors(self._learner)}
        self._fleet = named_fleet([site.services["policy"].proxy])
        self._policy = remote_policy(self._fleet, self._learner, seconds=PUSH_PATIENCE_S, run_id="soak")
        with PolicyClient(site.services["policy"].address) as client:
            model = client.get_policy().model
        self.whole = {(model.step, model.weights_sha256)}
        """(step, digest) of all that may ever serve."""
        self._policy.start(0)
        self._step = 0

    def push(self):
        self._step += 1
        with torch.no_grad():
            for name, tensor in (changed := list(effective_tensors(self._learner))[:4]):
                tensor.copy_(self._original[name] * (1 + 0.001 * (self._step % 100)))
        self.whole.add((self._step, WeightsDigest(effective_tensors(self._learner)).hexdigest()))
        self._policy.push(changed, self._step)
        return self.newest

    @property
    def newest(self):
        """Of the last step that was to be pushed."""
        return self._policy.weights.step, self._policy.weights.sha256

    def close(self):
        self._fleet.close()


def value(result):
    """The reward of an item. Raises PlauditError for one that has none."""
    if isinstance(result, ItemFailure):
        raise PlauditError(f"{result.code}: {result.message}")
    return result.reward


def callers(site, folder, stack):
    """One Kind of each call, over the lines; their clients end with `stack`."""
    at = {name: service.proxy.address for name, service in site.services.items()}
    reward = stack.enter_context(RewardClient(at["reward"], timeout=DEADLINE_S))
    reference = stack.enter_context(ReferenceClient(at["reference"], timeout=DEADLINE_S))
    policy = stack.enter_context(PolicyClient(at["policy"], timeout=DEADLINE_S))
    pusher = Pusher(site, folder)
    stack.callback(pusher.close)

    def score():
        return [value(result) for result in reward.score(ITEMS, deterministic=True)]

    def stream():
        return [value(result) for result in reward.score_many(STREAM, window=16)]

    def bad():
        reward.score([("", "")], all_or_nothing=True)

    def logprobs():
        return [values.tolist() for values in reference.compute_logprobs(SEQUENCES, STARTS).values]

    def generate():
        generation = policy.generate(PROMPTS, max_new_tokens=8, seeds=[1, 2])
        spans = {span.step for sequence in generation.sequences for span in sequence.version_spans}
        return (generation.model.step, generation.model.weights_sha256), spans

    def known(answer):
        model, spans = answer
        return model in pusher.whole and spans <= {step for step, _ in pusher.whole}

    return pusher, [
        Kind("Score", score),
        Kind("ScoreStream", stream, longest=4 * DEADLINE_S, check=lambda found: len(found) == len(STREAM)),
        Kind("Score, wrong on purpose", bad, check=lambda _: False, is_bad=True),
        Kind("ComputeLogprobs", logprobs),
        Kind("Generate", generate, check=known),
        Kind("push of a step", pusher.push, longest=PUSH_PATIENCE_S + 60, pause=PUSH_PAUSE_S,
             check=pusher.whole.__contains__),
    ]  # fmt: skip
