"""Whatever is called, in whatever order: what serves is always one whole step that somebody pushed."""

import asyncio
import contextlib

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from policy_bench import Bench, Trainer

from lm.digests import WeightsDigest, effective_tensors
from services.errors import ServiceError
from services.policy.interface import PushState, SwapMode
from services.policy.watch import VersionWatchers
from services.policy.weights import Pushes

NAMES = [{"model.norm.weight"}, {"model.norm.weight", "model.layers.0.input_layernorm.weight"}]
PICK = st.integers(0, 5)
"""One of the last pushes, whatever has become of it."""


class Pushed:
    """A push that began, and the bytes that the server took of it."""

    def __init__(self, push, trainer):
        self.push, self.trainer, self.taken = push, trainer, bytearray()


class Machine(RuleBasedStateMachine):
    def __init__(self, folder):
        super().__init__()
        self.runner = asyncio.Runner()
        self.begun = []
        self.runner.run(self.start(folder))

    async def start(self, folder):
        self.bench = Bench(folder)
        self.pushes = Pushes(self.bench.engine, self.bench.metrics)
        self.watchers, self.closing = VersionWatchers(), asyncio.Event()
        self.bench.engine._on_version = lambda version: self.watchers.wake()
        self.serving = [self.bench.engine.version]
        self.told = []
        self.watching = asyncio.create_task(self.watch())
        await asyncio.sleep(0)

    async def watch(self):
        async for version in self.watchers.versions(lambda: self.bench.engine.version, self.closing):
            self.told.append(version)

    def run(self, act):
        """`act` returns; or fails in a way that callers are told of, and no other."""

        async def acting():
            with contextlib.suppress(ServiceError):
                return await act()

        return self.runner.run(acting())

    def picked(self, pick):
        return self.begun[-1 - pick % len(self.begun)] if self.begun else None

    @rule(
        run=st.sampled_from("ab"),
        ahead=st.integers(0, 2),
        stale=st.integers(0, 1),
        seed=st.integers(0, 9),
        names=st.sampled_from(NAMES),
        take_over=st.booleans(),
    )
    def begin(self, run, ahead, stale, seed, names, take_over):
        base = self.bench.engine.version.step + stale
        trainer = Trainer(self.bench, run, base, base + ahead, seed=seed, names=names)

        async def act():
            return self.pushes.begin(trainer.manifest, take_over)

        push = self.run(act)
        if push is not None and all(push is not each.push for each in self.begun):
            self.begun.append(Pushed(push, trainer))

    @rule(pick=PICK, size=st.integers(1, 300), skip=st.sampled_from([0, 0, 0, -1, 1]), flip=st.booleans())
    def append(self, pick, size, skip, flip):
        """The next bytes; or bytes that are damaged, too early, too late, or too many."""
        if (to := self.picked(pick)) is None:
            return
        offset = max(0, len(to.taken) + skip)
        data = bytearray(to.trainer.data[offset : offset + size] or b"more")
        data[0] ^= flip and size > 250

        async def act():
            self.pushes.append(to.push.id, offset, bytes(data))
            to.taken += data

        self.run(act)

    @rule(pick=PICK)
    def append_the_rest(self, pick):
        if (to := self.picked(pick)) is None:
            return
        rest = to.trainer.data[len(to.taken) :]

        async def act():
            self.pushes.append(to.push.id, len(to.taken), rest)
            to.taken += rest

        self.run(act)

    @rule(pick=PICK, mode=st.sampled_from(SwapMode), times=st.integers(1, 3), abort=st.booleans())
    def commit(self, pick, mode, times, abort):
        """By several callers at once, and given up while it is under way."""
        if (to := self.picked(pick)) is None:
            return

        async def act():
            calls = [self.pushes.commit(to.push.id, mode) for _ in range(times)]
            if abort:
                calls.append(self.pushes.abort(to.push.id))
            await asyncio.gather(*calls, return_exceptions=True)

        self.run(act)

    @rule(pick=PICK)
    def abort(self, pick):
        if (to := self.picked(pick)) is not None:
            self.run(lambda: self.pushes.abort(to.push.id))

    @rule()
    def expire(self):
        """What the timer would do two minutes later."""
        timer = self.pushes._timer

        async def act():
            expire, arguments = timer._callback, timer._args
            timer.cancel()
            expire(*arguments)

        if timer is not None:
            self.run(act)

    @invariant()
    def what_serves_is_whole(self):
        """To the last byte, by a digest that is made anew."""
        version = self.bench.engine.version
        found = WeightsDigest(effective_tensors(self.bench.model.loaded.model)).hexdigest()
        assert found == version.weights_sha256 == self.bench.model.weights.sha256
        if version == self.serving[-1]:
            return
        (source,) = [
            to for to in self.begun if to.push.state is PushState.COMMITTED and to.push.version == version
        ]
        assert source.taken == source.trainer.data
        before = self.serving[-1]
        assert version.run_id != before.run_id or version.step > before.step
        self.serving.append(version)

    @invariant()
    def one_push_at_a_time(self):
        alive = [to.push for to in self.begun if to.push.state in (PushState.OPEN, PushState.COMMITTING)]
        assert alive == ([self.pushes._push] if self.pushes._push else [])
        assert all(not to.push._buffer for to in self.begun if to.push not in alive)
        assert bool(self.pushes._timer) == bool(alive)

    @invariant()
    def watchers_know_it(self):
        self.runner.run(asyncio.sleep(0))
        assert self.told[-1] == self.bench.engine.version
        committed = {to.push.version for to in self.begun if to.push.state is PushState.COMMITTED}
        assert set(self.told) <= {self.serving[0], *committed}

    def teardown(self):
        async def stop():
            self.watching.cancel()
            await self.pushes.close()
            await self.bench.close()

        self.runner.run(stop())
        self.runner.close()


def test_whatever_is_called(tiny_policy):
    run_state_machine_as_test(
        lambda: Machine(tiny_policy),
        settings=settings(max_examples=30, stateful_step_count=20, deadline=None),
    )
