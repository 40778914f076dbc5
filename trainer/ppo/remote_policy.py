"""The policy as services: rollouts cut into chunks over replicas, weights pushed to every one.

A chunk is one deterministic request. Which replica answers makes no difference to its bits, so a chunk
whose replica dies is asked of another, or of the same one when it is back. Replicas may come and go: each
is asked what it serves, and gets the current weights, before it gets a prompt.
"""

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from lm.digests import WeightsDigest
from plaudit.clients.data import ModelVersion
from plaudit.clients.errors import DataLoss
from trainer.ppo.config import SamplingSection
from trainer.ppo.fleet import Fleet
from trainer.ppo.patience import Away, Patience
from trainer.ppo.replica import Named, Replica, Weights
from trainer.ppo.roles import StaleWeights
from trainer.ppo.rollout import Prompt, Response
from trainer.tracing import submit

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
Given = ParamSpec("Given")

logger = logging.getLogger(__name__)


class RemotePolicy:
    """Policy servers that all serve the learner's weights of the same step."""

    def __init__(
        self,
        fleet: Fleet,
        sampling: SamplingSection,
        patience: Patience,
        run_id: str,
        all_tensors: Callable[[], Iterable[tuple[str, Tensor]]],
        dtype: torch.dtype,
    ) -> None:
        """`all_tensors` gives the learner's effective tensors as they are now; `dtype` is what is served."""
        self._fleet = fleet
        self._sampling = sampling
        self._patience = patience
        self._run_id = run_id
        self._all_tensors = all_tensors
        self._dtype = dtype
        self._digest = WeightsDigest(())
        self._weights = Weights(run_id, -1, "")
        self._has_pushed = False
        """Until then a run that died before it had a checkpoint may still hold replicas with an open push."""
        self.bytes_pushed = 0
        """In all, to all replicas."""

    @property
    def weights(self) -> Weights:
        """What was pushed last."""
        return self._weights

    def start(self, step: int) -> None:
        """Makes every replica serve the learner's weights of `step`, whatever it served before."""
        self._digest = WeightsDigest((name, tensor.to(self._dtype)) for name, tensor in self._all_tensors())
        self._weights = Weights(self._run_id, step, self._digest.hexdigest())
        self._deliver((), base_sha256="", take_over=True)

    def push(self, tensors: Iterable[tuple[str, Tensor]], step: int) -> None:
        """Makes `tensors` the weights of `step` on every replica; tensors that aren't given stay.

        Raises RoleUnavailable if a replica stays away, StaleWeights if another run has taken one.
        """
        changed = [(name, tensor.to(self._dtype)) for name, tensor in tensors]
        base_sha256 = self._digest.hexdigest()
        self._digest = self._digest.with_changed(changed)
        self._weights = Weights(self._run_id, step, self._digest.hexdigest())
        self._deliver(changed, base_sha256)

    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int], step: int) -> list[Response]:
        """One response to each prompt, all by exactly the weights of `step`.

        Raises StaleWeights if a replica serves others and isn't ours to correct, RoleUnavailable if
        every replica stays away.
        """
        if step != self._weights.step:
            raise StaleWeights(f"step {step} was asked for, but {self._weights.step} was pushed last")
        size = self._sampling.request_size
        todo = deque(range(0, len(prompts), size))
        done: dict[int, list[Response]] = {}

        def work(replica: Replica) -> None:
            self._bring_up_to_date(replica)
            while todo:
                try:
                    start = todo.popleft()
                except IndexError:  # another replica was faster
                    return
                chunk = slice(start, start + size)
                try:
                    done[start] = self._generate_chunk(replica, prompts[chunk], seeds[chunk])
                except BaseException:
                    todo.append(start)
                    raise

        try:
            self._until_empty(todo, done, work)
        finally:
            todo.clear()  # after Ctrl-C no thread takes another chunk
        return [response for start in sorted(done) for response in done[start]]

    def _until_empty(
        self, todo: Collection[int], done: Collection[int], work: Callable[[Replica], None]
    ) -> None:
        """Has replicas work until nothing is left; those that were away only when all others are, too."""
        away, out = None, set[Replica]()
        with self._patience.wait() as waiting:
            while todo:
                before = len(done)
                try:
                    asked = [replica for replica in self._fleet.replicas() if replica not in out]
                    outcomes = _in_parallel(work, asked)
                    away = _first_away(outcomes) or away
                except Away as nobody:
                    asked, outcomes, away = [], [], nobody
                out |= {each for each, what in zip(asked, outcomes, strict=True) if isinstance(what, Away)}
                if len(done) > before:
                    waiting.renew()
                if todo and away and out.issuperset(asked):
                    waiting.pause(away)
                    out.clear()

    def _bring_up_to_date(self, replica: Replica) -> None:
        """Pushes everything to a replica that is new, or was restarted, or missed a push."""
        version = self._version(replica)
        if self._weights.served_by(version):
            return
        self._refuse_others([(replica, version)])
        logger.warning("%s serves step %d; it gets %s first", replica.endpoint, version.step, self._weights)
        self._call(replica, Replica.commit, self._stage(replica, version, (), take_over=False))

    def _generate_chunk(
        self, replica: Replica, prompts: Sequence[Prompt], seeds: Sequence[int]
    ) -> list[Response]:
        asked = (prompts, seeds, self._weights, self._sampling)
        try:
            return self._call(replica, Replica.generate, *asked)
        except StaleWeights:  # restarted since it was brought up to date?
            self._bring_up_to_date(replica)
        return self._call(replica, Replica.generate, *asked)

    def _deliver(self, changed: Named, base_sha256: str, take_over: bool = False) -> None:
        """Stages on every replica that is behind, then commits on all; starts over where one was away.

        Each round asks what the replicas serve, so that one that has it already isn't pushed twice,
        and the last round proves that all have it.
        """
        damaged = False
        with self._patience.wait() as waiting:
            while True:
                try:
                    replicas = self._fleet.replicas()
                    versions = _results(_in_parallel(self._version, replicas))
                    behind = [
                        (replica, version)
                        for replica, version in zip(replicas, versions, strict=True)
                        if not self._weights.served_by(version)
                    ]
                    if not behind:
                        return
                    if not take_over:
                        self._refuse_others(behind)
                    self._stage_and_commit(behind, changed, base_sha256, take_over or not self._has_pushed)
                    self._has_pushed = True
                except Away as away:
                    waiting.pause(away)
                except DataLoss as error:
                    if damaged:  # twice, that isn't the way there
                        raise
                    damaged = True
                    logger.warning("%s; sending it once more", error)

    def _refuse_others(self, behind: Sequence[tuple[Replica, ModelVersion]]) -> None:
        for replica, version in behind:
            if version.run_id not in ("", self._run_id):
                raise StaleWeights(
                    f"{replica.endpoint} now serves step {version.step} of run {version.run_id!r}: "
                    "another trainer pushes to it; give each run its own policy servers"
                )

    def _stage_and_commit(
        self,
        behind: Sequence[tuple[Replica, ModelVersion]],
        changed: Named,
        base_sha256: str,
        take_over: bool,
    ) -> None:
        def stage(which: tuple[Replica, ModelVersion]) -> str:
            replica, version = which
            tensors = changed if version.weights_sha256 == base_sha256 else ()
            return self._stage(replica, version, tensors, take_over)

        staged = _in_parallel(stage, behind)
        pushes = [
            (replica, id_) for (replica, _), id_ in zip(behind, staged, strict=True) if isinstance(id_, str)
        ]
        if len(pushes) < len(behind):
            _in_parallel(lambda push: self._call(push[0], Replica.abort, push[1]), pushes)
            _results(staged)
        _results(_in_parallel(lambda push: self._call(push[0], Replica.commit, push[1]), pushes))

    def _stage(self, replica: Replica, version: ModelVersion, changed: Named, take_over: bool) -> str:
        """Sends what changed, or everything where it isn't known what the replica has."""
        tensors = changed or tuple(self._all_tensors())
        given = (self._weights, version.step, tensors, self._dtype, take_over)
        push_id = self._call(replica, Replica.stage, *given)
        self.bytes_pushed += sum(tensor.numel() for _, tensor in tensors) * self._dtype.itemsize
        return push_id

    def _version(self, replica: Replica) -> ModelVersion:
        return self._call(replica, Replica.version)

    def _call(
        self,
        replica: Replica,
        ask: Callable[Concatenate[Replica, Given], ResultT],
        *args: Given.args,
        **kwargs: Given.kwargs,
    ) -> ResultT:
        """What `ask` gets of the replica; a call that hangs can be seen meanwhile."""
        with self._patience.calling(replica.endpoint):
            return ask(replica, *args, **kwargs)


def _in_parallel(act: Callable[[ItemT], ResultT], items: Sequence[ItemT]) -> list[ResultT | Exception]:
    """What `act` gave or raised for each item, each in a thread of its own; returns when all have ended."""

    def outcome(item: ItemT) -> ResultT | Exception:
        try:
            return act(item)
        except Exception as error:
            return error

    if len(items) < 2:
        return [outcome(item) for item in items]
    pool = ThreadPoolExecutor(len(items), thread_name_prefix="policy")
    try:
        return [done.result() for done in [submit(pool, outcome, item) for item in items]]
    finally:
        pool.shutdown(wait=False)  # all have ended, unless it is Ctrl-C that ends the waiting


def _results(outcomes: Sequence[ResultT | Exception]) -> list[ResultT]:
    """The results if all are. Raises what is worst: anything else before Away, which another try may mend."""
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    if errors:
        raise next((error for error in errors if not isinstance(error, Away)), errors[0])
    return [outcome for outcome in outcomes if not isinstance(outcome, Exception)]


def _first_away(outcomes: Sequence[object]) -> Away | None:
    """A replica that was away; raises any other error."""
    try:
        _results(outcomes)
    except Away as away:
        return away
    return None
