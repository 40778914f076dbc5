"""New weights while the engine works: what answers before, during and after the swap."""

import asyncio

import pytest
import torch
from policy_bench import asked, continued, fresh_model, new_weights, version

from lm.digests import effective_tensors
from services.errors import Conflict, Damaged, NotServing, PreconditionFailed
from services.policy.interface import SwapMode

IN_PLACE, DRAIN = SwapMode.IN_PLACE, SwapMode.DRAIN
PROMPT = (7, 8, 9)


@pytest.fixture
def pushed(bench):
    """New weights, the version they make, and a model from scratch that has them."""
    tensors, digest = new_weights(bench.model)
    fresh = fresh_model(bench.model.facts.model_id)
    fresh.weights.apply(fresh.weights.prepare(tensors, digest))
    return tensors, version(1, digest), fresh.loaded


def start_load(bench, tensors, new, mode=IN_PLACE):
    return asyncio.create_task(bench.engine.load(iter(tensors), new, mode))


async def test_an_idle_engine_swaps_at_once(bench, pushed):
    tensors, new, fresh = pushed
    (before,) = await bench.generate(PROMPT)
    await bench.engine.load(iter(tensors), new, IN_PLACE)
    assert bench.engine.version == new
    assert bench.versions == [new]
    (after,) = await bench.generate(PROMPT)
    assert list(after.token_ids) == continued(fresh, PROMPT, [], 8, seed=0)
    assert after.token_ids != before.token_ids
    assert after.version_spans == ((1, 0, 8),)


async def test_some_tensors_only(bench):
    names = {"model.layers.1.mlp.down_proj.weight"}
    tensors, digest = new_weights(bench.model, names=names)
    others = {n: t.clone() for n, t in effective_tensors(bench.model.loaded.model) if n not in names}
    await bench.engine.load(tensors, version(3, digest), DRAIN)
    now = dict(effective_tensors(bench.model.loaded.model))
    assert all(torch.equal(now[name], tensor) for name, tensor in [*others.items(), *tensors])


async def test_no_tensors_is_another_step_of_the_same_weights(bench):
    await bench.engine.load([], version(7, bench.model.weights.sha256, "resumed"), IN_PLACE)
    assert (bench.engine.version.run_id, bench.engine.version.step) == ("resumed", 7)


async def test_in_place_goes_on_under_the_new_weights(bench, pushed):
    tensors, new, fresh = pushed
    generation = bench.engine.submit(asked(PROMPT, (20,), max_new_tokens=10))
    await bench.thread.steps(3)
    loading = start_load(bench, tensors, new)
    await bench.swap_waits()
    bench.thread.allow()
    await loading
    for response, prompt in zip(await generation.all(), (PROMPT, (20,)), strict=True):
        tokens = list(response.token_ids)
        assert response.version_spans == ((0, 0, 4), (1, 4, 10))
        old_model = fresh_model(bench.model.facts.model_id).loaded
        assert tokens[:4] == continued(old_model, prompt, [], 4, response.seed)
        assert tokens[4:] == continued(fresh, prompt, tokens[:4], 6, response.seed)
        assert tokens[4:] != continued(old_model, prompt, tokens[:4], 6, response.seed)
    assert generation.version == new


async def test_drain_lets_what_runs_end_first(bench, pushed):
    tensors, new, fresh = pushed
    running = bench.engine.submit(asked(PROMPT, step_exactly=0))
    await bench.thread.steps(3)
    loading = start_load(bench, tensors, new, DRAIN)
    await bench.swap_waits()
    waiting = bench.engine.submit(asked(PROMPT))
    bench.thread.allow()
    await loading
    (old,), (later,) = await running.all(), await waiting.all()
    assert old.version_spans == ((0, 0, 8),)
    assert later.version_spans == ((1, 0, 8),)
    assert list(later.token_ids) == continued(fresh, PROMPT, [], 8, seed=0)


async def test_step_exactly_fails_rather_than_mixes(bench, pushed):
    tensors, new, _ = pushed
    exact = bench.engine.submit(asked(PROMPT, step_exactly=0, max_new_tokens=50))
    await bench.thread.steps(2)
    exact_in_queue = bench.engine.submit(asked(PROMPT, step_exactly=0))
    any_step = bench.engine.submit(asked(PROMPT, step_at_least=0))
    loading = start_load(bench, tensors, new)
    await bench.swap_waits()
    bench.thread.allow()
    await loading
    for generation in (exact, exact_in_queue):
        with pytest.raises(PreconditionFailed, match="step 1 is loaded, not exactly step 0"):
            await generation.all()
    assert (await any_step.all())[0].version_spans == ((1, 0, 8),)


async def test_step_at_least_after_another_run_started_over(bench, pushed):
    tensors, new, _ = pushed
    await bench.engine.load(tensors, version(5, new.weights_sha256), IN_PLACE)
    generation = bench.engine.submit(asked(PROMPT, step_at_least=5, max_new_tokens=50))
    await bench.thread.steps(1)
    loading = start_load(bench, [], version(0, new.weights_sha256, "other"))
    await bench.swap_waits()
    bench.thread.allow()
    await loading
    with pytest.raises(PreconditionFailed, match="step 0 is loaded, not step 5 or later"):
        await generation.all()


async def test_weights_change_during_a_pause(bench, pushed):
    tensors, new, fresh = pushed
    generation = bench.engine.submit(asked(PROMPT, max_new_tokens=6))
    await bench.thread.steps(1)
    bench.engine.pause()
    bench.thread.allow()
    await bench.engine.load(tensors, new, IN_PLACE)
    assert not generation.done
    bench.engine.resume()
    (response,) = await generation.all()
    assert response.version_spans == ((0, 0, 2), (1, 2, 6))
    tokens = list(response.token_ids)
    assert tokens[2:] == continued(fresh, PROMPT, tokens[:2], 4, seed=0)


async def test_a_wrong_digest_leaves_the_old_weights_serving(bench, pushed):
    tensors, _, _ = pushed
    old = bench.engine.version
    before = await bench.generate(PROMPT)
    with pytest.raises(Damaged):
        await bench.engine.load(tensors, version(1, "0" * 64), IN_PLACE)
    assert bench.engine.version == old
    assert await bench.generate(PROMPT) == before


async def test_one_load_at_a_time(bench, pushed):
    tensors, new, _ = pushed
    bench.engine.submit(asked(PROMPT))
    await bench.thread.steps(1)
    loading = start_load(bench, tensors, new)
    await bench.swap_waits()
    with pytest.raises(Conflict):
        await bench.engine.load(tensors, new, IN_PLACE)
    bench.thread.allow()
    await loading


async def test_who_gives_up_before_the_swap_leaves_the_old_weights(bench, pushed):
    tensors, new, _ = pushed
    generation = bench.engine.submit(asked(PROMPT))
    await bench.thread.steps(2)
    loading = start_load(bench, tensors, new, DRAIN)
    await bench.swap_waits()
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    bench.thread.allow()
    (response,) = await generation.all()
    assert response.version_spans == ((0, 0, 8),)
    assert bench.engine.version.step == 0
    await bench.engine.load(tensors, new, DRAIN)  # and the next one works
    assert bench.engine.version == new


async def test_who_gives_up_during_the_swap_waits_it_out(bench, pushed, monkeypatch):
    tensors, new, _ = pushed
    applying, go_on = asyncio.Event(), asyncio.Event()
    run = type(bench.thread).run

    async def held(thread, fn, *args, **kwargs):
        if fn == bench.model.weights.apply:
            applying.set()
            await go_on.wait()
        return await run(thread, fn, *args, **kwargs)

    monkeypatch.setattr(type(bench.thread), "run", held)
    loading = start_load(bench, tensors, new)
    await applying.wait()
    loading.cancel()
    await asyncio.sleep(0)
    assert not loading.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert bench.engine.version == new


async def test_closing_fails_a_load_that_waits(bench, pushed):
    tensors, new, _ = pushed
    bench.engine.submit(asked(PROMPT))
    await bench.thread.steps(1)
    loading = start_load(bench, tensors, new, DRAIN)
    await bench.swap_waits()
    await bench.engine.close()
    with pytest.raises(NotServing):
        await loading
