"""How a push ends: committed, damaged, incomplete, aborted, expired; and that its bytes are its tensors."""

import asyncio
import contextlib
import sys
import threading

import pytest
import torch
from hypothesis import given, settings, strategies as st
from policy_bench import Trainer, asked, fresh_model

from lm.digests import effective_tensors, tensor_bytes
from services.errors import Conflict, Damaged, PreconditionFailed, UnknownName
from services.policy.interface import Manifest, PushState, SwapMode
from services.policy.model_weights import _spec
from services.policy.push import Push
from services.policy.weights import REMEMBERED, Pushes

IN_PLACE = SwapMode.IN_PLACE
NORM = "model.norm.weight"


def outcomes(bench, outcome):
    return bench.metric("plaudit_policy_pushes_total", outcome=outcome)


class TestCommit:
    async def assert_old_serves(self, bench, pushes, trainer, old, before):
        assert bench.engine.version == old
        assert await bench.generate((7, 8, 9)) == before
        assert (await pushes.commit(trainer.send(pushes), IN_PLACE)).step == 1  # the next push works

    async def test_truncated(self, bench, pushes, trainer):
        old, before = bench.engine.version, await bench.generate((7, 8, 9))
        push = pushes.begin(trainer.manifest)
        pushes.append(push.id, 0, trainer.data[:-1])
        for _ in range(2):  # the second time it is remembered
            with pytest.raises(PreconditionFailed, match=f"only {push.total - 1} of {push.total} bytes"):
                await pushes.commit(push.id, IN_PLACE)
        assert outcomes(bench, "refused") == 1
        with pytest.raises(PreconditionFailed, match="bytes have arrived"):
            pushes.append(push.id, push.total - 1, b"x")
        await self.assert_old_serves(bench, pushes, trainer, old, before)

    @pytest.mark.parametrize("at", [0, 5000, -1])
    async def test_damaged(self, bench, pushes, trainer, at):
        old, before = bench.engine.version, await bench.generate((7, 8, 9))
        push_id = pushes.begin(trainer.manifest).id
        damaged = bytearray(trainer.data)
        damaged[at] ^= 1
        pushes.append(push_id, 0, bytes(damaged))
        for _ in range(2):
            with pytest.raises(Damaged, match="have digest"):
                await pushes.commit(push_id, IN_PLACE)
        assert outcomes(bench, "damaged") == 1
        await self.assert_old_serves(bench, pushes, trainer, old, before)

    async def test_reordered(self, bench, pushes, trainer):
        old, before = bench.engine.version, await bench.generate((7, 8, 9))
        push_id = pushes.begin(trainer.but(tensors=trainer.manifest.tensors[::-1])).id
        pushes.append(push_id, 0, trainer.data)
        with pytest.raises(Damaged):
            await pushes.commit(push_id, IN_PLACE)
        await self.assert_old_serves(bench, pushes, trainer, old, before)

    async def test_the_digest_of_the_pushed_tensors_alone_is_not_enough(self, bench, pushes):
        """Unchanged tensors count: a push onto other base weights is found out."""
        trainer = Trainer(bench, names={NORM})
        with torch.no_grad():
            stray = bench.model.loaded.model.get_parameter("model.layers.0.mlp.up_proj.weight")
            stray += 1
        bench.model.weights.__init__(bench.model.loaded.model)
        with pytest.raises(Damaged):
            await pushes.commit(trainer.send(pushes), IN_PLACE)

    async def test_an_unknown_push(self, pushes):
        with pytest.raises(UnknownName):
            await pushes.commit("who", IN_PLACE)

    async def test_nothing_else_while_it_commits(self, bench, pushes, trainer):
        async with committing(bench, pushes, trainer) as push:
            with pytest.raises(Conflict):
                pushes.append(push.id, push.total, b"")
            with pytest.raises(Conflict, match="step 1 of run 'run' is being committed"):
                pushes.begin(trainer.but(new_step=2))
            assert pushes.begin(trainer.manifest) is push  # the same is nothing else
            assert push.expires_in == 0

    async def test_repeated_it_is_the_same_commit(self, bench, pushes, trainer):
        async with committing(bench, pushes, trainer) as push:
            again = asyncio.create_task(pushes.commit(push.id, IN_PLACE))
        assert await again == await pushes.commit(push.id, IN_PLACE) == bench.engine.version
        assert outcomes(bench, "committed") == 1
        with pytest.raises(PreconditionFailed, match="step 1 of this push is committed"):
            pushes.append(push.id, push.total, b"x")
        with pytest.raises(PreconditionFailed, match="step 1 of this push is committed"):
            await pushes.abort(push.id)

    async def test_it_goes_on_without_its_caller(self, bench, pushes, trainer):
        async with committing(bench, pushes, trainer) as push:
            push.caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await push.caller
        assert (await pushes.commit(push.id, IN_PLACE)).step == 1

    async def test_what_has_ended_is_forgotten_at_last(self, bench, pushes, trainer):
        first = pushes.begin(trainer.manifest).id
        await pushes.abort(first)
        for _ in range(REMEMBERED):
            with pytest.raises(PreconditionFailed, match="was aborted; begin again"):
                await pushes.commit(first, IN_PLACE)
            await pushes.abort(pushes.begin(trainer.manifest).id)
        with pytest.raises(UnknownName):
            await pushes.commit(first, IN_PLACE)

    async def test_a_failure_that_nobody_foresaw(self, bench, pushes, trainer, monkeypatch, caplog):
        def burn(*_):
            raise RuntimeError("the card burns")

        monkeypatch.setattr(bench.model.weights, "prepare", burn)
        push_id = trainer.send(pushes)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="the card burns"):
                await pushes.commit(push_id, IN_PLACE)
        assert outcomes(bench, "failed") == 1
        assert "in burn" in caplog.text, "the stack is in the log, for callers get none"


@contextlib.asynccontextmanager
async def committing(bench, pushes, trainer):
    """A push whose commit waits for a response to end, which it does after the block."""
    bench.engine.submit(asked((7, 8)))
    await bench.thread.steps(1)
    push = pushes.find(trainer.send(pushes))
    push.caller = asyncio.create_task(pushes.commit(push.id, SwapMode.DRAIN))
    await bench.swap_waits()
    yield push
    bench.thread.allow()
    await asyncio.wait([push.caller])


class TestAbortInMidCommit:
    async def test_the_old_weights_stay(self, bench, pushes, trainer):
        old = bench.engine.version
        async with committing(bench, pushes, trainer) as push:
            both = await asyncio.gather(pushes.abort(push.id), pushes.abort(push.id))
            assert both == [old, old]
            with pytest.raises(PreconditionFailed, match="aborted while it was being committed"):
                await push.caller
        assert (push.state, push.committing, push._buffer) == (PushState.GIVEN_UP, None, b"")
        assert outcomes(bench, "aborted") == 1
        assert (await pushes.commit(trainer.send(pushes), IN_PLACE)).step == 1

    async def test_before_it_has_begun(self, bench, pushes, trainer):
        """A task that is cancelled before its first step never runs."""
        push_id = trainer.send(pushes)
        commit = asyncio.create_task(pushes.commit(push_id, IN_PLACE))
        abort = asyncio.create_task(pushes.abort(push_id))
        with pytest.raises(PreconditionFailed, match="aborted"):
            await commit
        assert await abort == bench.engine.version
        pushes.begin(trainer.manifest)

    async def test_too_late(self, bench, pushes, trainer, monkeypatch):
        """The weights are being put in place: the abort waits, and tells that they serve."""
        applying, go_on = threading.Event(), threading.Event()
        apply = bench.model.weights.apply

        def slow(prepared):
            applying.set()
            go_on.wait(10)
            apply(prepared)

        monkeypatch.setattr(bench.model.weights, "apply", slow)
        push_id = trainer.send(pushes)
        commit = asyncio.create_task(pushes.commit(push_id, IN_PLACE))
        await asyncio.to_thread(applying.wait, 10)
        aborts = [asyncio.create_task(pushes.abort(push_id)) for _ in range(2)]
        await asyncio.sleep(0)
        go_on.set()
        for abort in aborts:
            with pytest.raises(PreconditionFailed, match="step 1 of this push is committed"):
                await abort
        assert await commit == bench.engine.version
        assert bench.engine.version.step == 1


@pytest.mark.parametrize("end", ["commit", "damage", "abort", "abort in mid-commit"])
async def test_nothing_keeps_the_bytes_of_a_push_that_has_ended(bench, pushes, trainer, end):
    """Not its outcome, not a task, not a frame of an exception: they are gigabytes."""
    push = pushes.find(trainer.send(pushes))
    buffer = push._buffer
    buffer[-1] ^= end == "damage"
    commit = asyncio.create_task(pushes.commit(push.id, IN_PLACE)) if end != "abort" else None
    await asyncio.sleep(0)
    with contextlib.suppress(PreconditionFailed, Damaged):
        await (pushes.abort(push.id) if "abort" in end else commit)
    with contextlib.suppress(PreconditionFailed, Damaged):
        await pushes.commit(push.id, IN_PLACE)
    del commit
    async with asyncio.timeout(10):
        while sys.getrefcount(buffer) > 2:  # noqa: ASYNC110 (this test's and the call's; a thread may still verify)
            await asyncio.sleep(0.001)


class TestEnds:
    async def test_abort(self, bench, pushes, trainer):
        push_id = pushes.begin(trainer.manifest).id
        for _ in range(2):
            assert await pushes.abort(push_id) == bench.engine.version
        assert outcomes(bench, "aborted") == 1
        with pytest.raises(UnknownName):
            await pushes.abort("who")
        pushes.begin(trainer.manifest)

    async def test_an_idle_push_expires_and_frees_its_memory(self, bench, trainer):
        pushes = Pushes(bench.engine, bench.metrics, idle_seconds=0.001)
        push_id = pushes.begin(trainer.manifest).id
        push = pushes.find(push_id)
        while push.state is PushState.OPEN:  # noqa: ASYNC110 (a timer tells nobody)
            await asyncio.sleep(0.001)
        assert push._buffer == b""
        with pytest.raises(PreconditionFailed, match=r"nobody touched the push for 0\.001 s; begin again"):
            pushes.append(push_id, 0, trainer.data)
        assert outcomes(bench, "expired") == 1
        pushes.begin(trainer.manifest)

    async def test_every_chunk_puts_expiry_off(self, pushes, trainer):
        push_id = pushes.begin(trainer.manifest).id
        first = pushes._timer
        pushes.append(push_id, 0, trainer.data[:10])
        assert first.cancelled()
        assert pushes._timer.when() > first.when()


DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
TENSORS = st.lists(
    st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(1, 5), max_size=3)),
    min_size=1,
    max_size=6,
)


@given(TENSORS, st.integers(1, 97), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_bytes_become_the_tensors_they_were(kinds, size, seed):
    """Any types (so any alignment), any shapes, any chunk size."""
    generator = torch.Generator().manual_seed(seed)
    sent = [torch.randn(shape, generator=generator).to(DTYPES[dtype]) for dtype, shape in kinds]
    specs = tuple(_spec(str(index), tensor) for index, tensor in enumerate(sent))
    data = b"".join(bytes(tensor_bytes(tensor)) for tensor in sent)
    push = Push(Manifest("run", 0, 1, specs, ""))
    for offset in range(0, len(data), size):
        push.append(offset, data[offset : offset + size])
    received = [tensor for _, tensor in push.tensors()]
    assert len(received) == len(sent)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(received, sent, strict=True))


def test_effective_tensors_are_all_a_push_can_name(tiny_policy):
    model = fresh_model(tiny_policy)
    model.weights.check([_spec(name, tensor) for name, tensor in effective_tensors(model.loaded.model)])
