"""How a push ends: committed, damaged, incomplete, aborted, expired; and that its bytes are its tensors."""

import asyncio

import pytest
import torch
from hypothesis import given, settings, strategies as st
from policy_bench import Trainer, asked, fresh_model

from lm.digests import effective_tensors, tensor_bytes
from services.errors import Conflict, Damaged, PreconditionFailed, UnknownName
from services.policy.interface import Manifest, SwapMode
from services.policy.model_weights import _spec
from services.policy.weights import Pushes, _Push

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
        push_id, total = pushes.begin(trainer.manifest)
        pushes.append(push_id, 0, trainer.data[:-1])
        with pytest.raises(PreconditionFailed, match=f"only {total - 1} of {total} bytes"):
            await pushes.commit(push_id, IN_PLACE)
        assert outcomes(bench, "refused") == 1
        with pytest.raises(UnknownName):
            pushes.append(push_id, total - 1, b"x")
        await self.assert_old_serves(bench, pushes, trainer, old, before)

    @pytest.mark.parametrize("at", [0, 5000, -1])
    async def test_damaged(self, bench, pushes, trainer, at):
        old, before = bench.engine.version, await bench.generate((7, 8, 9))
        push_id, _ = pushes.begin(trainer.manifest)
        damaged = bytearray(trainer.data)
        damaged[at] ^= 1
        pushes.append(push_id, 0, bytes(damaged))
        with pytest.raises(Damaged, match="have digest"):
            await pushes.commit(push_id, IN_PLACE)
        assert outcomes(bench, "damaged") == 1
        await self.assert_old_serves(bench, pushes, trainer, old, before)

    async def test_reordered(self, bench, pushes, trainer):
        old, before = bench.engine.version, await bench.generate((7, 8, 9))
        push_id, _ = pushes.begin(trainer.but(tensors=trainer.manifest.tensors[::-1]))
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
        bench.engine.submit(asked((7, 8)))
        await bench.thread.steps(1)
        push_id = trainer.send(pushes)
        committing = asyncio.create_task(pushes.commit(push_id, SwapMode.DRAIN))
        await bench.swap_waits()
        for call in (
            lambda: pushes.append(push_id, len(trainer.data), b""),
            lambda: pushes.abort(push_id),
            lambda: pushes.begin(trainer.manifest),
        ):
            with pytest.raises(Conflict):
                call()
        with pytest.raises(Conflict):
            await pushes.commit(push_id, IN_PLACE)
        bench.thread.allow()
        assert (await committing).step == 1

    async def test_a_caller_that_gives_up_leaves_the_old_weights(self, bench, pushes, trainer):
        bench.engine.submit(asked((7, 8)))
        await bench.thread.steps(1)
        committing = asyncio.create_task(pushes.commit(trainer.send(pushes), SwapMode.DRAIN))
        await bench.swap_waits()
        committing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await committing
        assert outcomes(bench, "failed") == 1
        bench.thread.allow()
        assert (await pushes.commit(trainer.send(pushes), IN_PLACE)).step == 1


class TestEnds:
    async def test_abort(self, bench, pushes, trainer):
        push_id, _ = pushes.begin(trainer.manifest)
        assert pushes.abort(push_id) == bench.engine.version
        assert outcomes(bench, "aborted") == 1
        with pytest.raises(UnknownName):
            pushes.abort(push_id)
        pushes.begin(trainer.manifest)

    async def test_an_idle_push_expires_and_frees_its_memory(self, bench, trainer):
        pushes = Pushes(bench.engine, bench.metrics, idle_seconds=0.001)
        push_id, _ = pushes.begin(trainer.manifest)
        while pushes._push is not None:  # noqa: ASYNC110 (a timer tells nobody)
            await asyncio.sleep(0.001)
        with pytest.raises(UnknownName):
            pushes.append(push_id, 0, trainer.data)
        assert outcomes(bench, "expired") == 1
        pushes.begin(trainer.manifest)

    async def test_every_chunk_puts_expiry_off(self, pushes, trainer):
        push_id, _ = pushes.begin(trainer.manifest)
        first = pushes._timer
        pushes.append(push_id, 0, trainer.data[:10])
        assert first.cancelled()
        assert pushes._timer.when() > first.when()

    async def test_it_does_not_expire_while_it_commits(self, bench, trainer):
        pushes = Pushes(bench.engine, bench.metrics)
        bench.engine.submit(asked((7, 8)))
        await bench.thread.steps(1)
        committing = asyncio.create_task(pushes.commit(trainer.send(pushes), SwapMode.DRAIN))
        await bench.swap_waits()
        assert pushes._timer is None
        bench.thread.allow()
        await committing


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
    push = _Push(Manifest("run", 0, 1, specs, ""))
    for offset in range(0, len(data), size):
        push.append(offset, data[offset : offset + size])
    received = [tensor for _, tensor in push.tensors()]
    assert len(received) == len(sent)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(received, sent, strict=True))


def test_effective_tensors_are_all_a_push_can_name(tiny_policy):
    model = fresh_model(tiny_policy)
    model.weights.check([_spec(name, tensor) for name, tensor in effective_tensors(model.loaded.model)])
