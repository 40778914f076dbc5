"""The engine by request: alone, under load, cancelled, paused, late, refused, failing, closed."""

import asyncio
import time

import pytest
import torch
from policy_bench import asked, continued

from lm.errors import InputError
from lm.sampling import NotFinite
from lm.tokenizer import decode
from services.batching import WAITING_CALLS, CallLimits
from services.errors import NotServing, Overloaded, PreconditionFailed, TooLate
from services.policy.rows import BatchLimits

PROMPTS = ((7, 8, 9), (20,), (30, 31, 32, 33))


def bits(responses):
    return [(r.token_ids, r.logprobs, r.logprobs_temperature_1, r.finish) for r in responses]


class TestGeneration:
    async def test_every_prompt_and_sample_in_order(self, bench):
        responses = await bench.generate(*PROMPTS, samples_per_prompt=2, seeds=(5, 6, 7))
        order = [(r.prompt_index, r.sample_index, r.seed) for r in responses]
        assert order == [(0, 0, 5), (0, 1, 5), (1, 0, 6), (1, 1, 6), (2, 0, 7), (2, 1, 7)]
        for r in responses:
            assert r.finish == "length"
            assert len(r.token_ids) == len(r.logprobs) == len(r.logprobs_temperature_1) == 8
            assert r.version_spans == ((0, 0, 8),)
            assert r.text == decode(bench.model.loaded.tokenizer, r.token_ids)

    async def test_tokens_are_those_of_the_model_alone(self, bench):
        responses = await bench.generate(*PROMPTS, seeds=(5, 6, 7))
        for r, prompt in zip(responses, PROMPTS, strict=True):
            assert list(r.token_ids) == continued(bench.model.loaded, prompt, [], 8, r.seed)

    async def test_responses_come_as_they_end(self, bench):
        loaded = bench.model.loaded
        tokens = continued(loaded, (7, 8), [], 8, seed=0)
        stop = frozenset({tokens[2]})
        expected = tokens.index(tokens[2]) + 1
        generation = bench.engine.submit(asked((7, 8), (9,), seeds=(0, 1), stop_token_ids=stop))
        await bench.thread.steps(expected)
        first = await anext(aiter(generation))
        assert (first.prompt_index, first.finish, len(first.token_ids)) == (0, "stop_token", expected)
        assert not generation.done

    async def test_large_requests_run_in_chunks(self, make_bench):
        small = make_bench(batch_limits=BatchLimits(rows=4))
        responses = await small.generate(*PROMPTS, samples_per_prompt=3)
        assert len(responses) == 9
        assert small.metric("plaudit_policy_batch_rows_bucket", le="4.0") == small.metric(
            "plaudit_policy_batch_rows_count"
        )
        assert [r.token_ids for r in responses] == [
            r.token_ids for r in await make_bench().generate(*PROMPTS, samples_per_prompt=3)
        ]

    async def test_encodes_with_its_own_tokenizer(self, bench):
        tokenizer = bench.model.loaded.tokenizer
        assert decode(tokenizer, bench.engine.encode_text("the film", "text")) == "the film"
        ids = bench.engine.encode_chat([("user", "hi")], "messages")
        assert decode(tokenizer, ids, skip_special_tokens=False).endswith("<|start|>assistant\n")
        with pytest.raises(InputError, match=r"prompts\[0\].text"):
            bench.engine.encode_text("a <|end|> b", "prompts[0].text")


class TestSharing:
    async def test_requests_that_wait_together_share_batches(self, bench):
        bench.engine.pause()
        generations = [bench.engine.submit(asked(prompt)) for prompt in PROMPTS]
        assert bench.engine.queue.waiting_items == 3
        bench.engine.resume()
        await asyncio.gather(*[generation.all() for generation in generations])
        assert bench.metric("plaudit_policy_decode_step_seconds_count") == 8
        assert bench.metric("plaudit_policy_generated_tokens_total") == 24
        assert bench.engine.queue.waiting_items == bench.engine.queue.waiting_tokens == 0

    async def test_a_deterministic_request_gives_the_same_bits_alone_and_under_load(self, make_bench):
        bench = make_bench(dtype="float32")
        request = {"samples_per_prompt": 2, "deterministic": True, "max_new_tokens": 24}
        alone = bits(await bench.generate(*PROMPTS, **request))
        again = bits(await bench.generate(*PROMPTS, **request))
        bench.engine.pause()
        load = [bench.engine.submit(asked((3, 4, 5, 6, 7, 8), (9,), max_new_tokens=17)) for _ in range(3)]
        loaded = bench.engine.submit(asked(*PROMPTS, **request))
        load += [bench.engine.submit(asked((1, 2), deterministic=True)) for _ in range(2)]
        bench.engine.resume()
        under_load, *_ = await asyncio.gather(loaded.all(), *[generation.all() for generation in load])
        assert alone == again == bits(under_load)

    async def test_requests_that_draw_differently_run_one_after_the_other(self, bench):
        bench.engine.pause()
        greedy = bench.engine.submit(asked((7, 8), temperature=0.0))
        sampled = bench.engine.submit(asked((7, 8)))
        bench.engine.resume()
        (first,), (second,) = await asyncio.gather(greedy.all(), sampled.all())
        assert first.logprobs == (0.0,) * 8
        assert all(logprob < 0 for logprob in second.logprobs)
        assert bench.metric("plaudit_policy_decode_step_seconds_count") == 16


class TestGivingUp:
    async def test_cancel_stops_after_the_step_in_progress(self, bench):
        generation = bench.engine.submit(asked((7, 8), max_new_tokens=100))
        await bench.thread.steps(2)
        bench.engine.cancel(generation)
        bench.thread.allow()
        assert await generation.all() == []
        await bench.generate((1,), max_new_tokens=1)
        assert bench.metric("plaudit_policy_decode_step_seconds_count") == 3 + 1
        assert bench.metric("plaudit_policy_sequences_total", finish_reason="dropped") == 1
        assert bench.engine.queue.waiting_items == 0

    async def test_cancel_leaves_its_batch_mates_alone(self, bench):
        bench.engine.pause()
        given_up, kept = (bench.engine.submit(asked(ids, max_new_tokens=20)) for ids in ((7, 8, 9), (20,)))
        bench.engine.resume()
        await bench.thread.steps(3)
        bench.engine.cancel(given_up)
        bench.thread.allow()
        (response,) = await kept.all()
        assert list(response.token_ids) == continued(bench.model.loaded, (20,), [], 20, seed=0)

    async def test_cancelled_while_it_waits_it_never_runs(self, bench):
        bench.engine.pause()
        generation = bench.engine.submit(asked((7, 8)))
        bench.engine.cancel(generation)
        bench.engine.cancel(generation)  # twice does nothing more
        assert bench.engine.queue.waiting_items == 0
        bench.engine.resume()
        await bench.generate((1,), max_new_tokens=1)
        assert bench.metric("plaudit_policy_decode_step_seconds_count") == 1

    async def test_cancelled_between_chunks(self, make_bench):
        bench = make_bench(batch_limits=BatchLimits(rows=1))
        generation = bench.engine.submit(asked((1,), (2,), (3,), max_new_tokens=2))
        await bench.thread.steps(2)
        bench.engine.cancel(generation)
        bench.thread.allow()
        await bench.generate((1,), max_new_tokens=1)
        # Two steps of the first chunk, one of the second that was at the door.
        assert bench.metric("plaudit_policy_decode_step_seconds_count") == 3 + 1

    async def test_a_deadline_that_passed_in_the_queue(self, bench):
        bench.engine.pause()
        generation = bench.engine.submit(asked((7, 8), deadline=time.monotonic() - 1))
        bench.engine.resume()
        with pytest.raises(TooLate, match="deadline"):
            await generation.all()
        assert bench.metric("plaudit_policy_decode_step_seconds_count") == 0

    async def test_a_deadline_that_passes_on_the_way(self, bench, monkeypatch):
        deadline = time.monotonic() + 1000
        generation = bench.engine.submit(asked((7, 8), max_new_tokens=100, deadline=deadline))
        await bench.thread.steps(3)
        monkeypatch.setattr(time, "monotonic", lambda: deadline)
        bench.thread.allow()
        with pytest.raises(TooLate):
            await generation.all()
        monkeypatch.undo()
        assert bench.metric("plaudit_policy_decode_step_seconds_count") == 4


class TestPause:
    async def test_nothing_runs_until_resumed(self, bench):
        generation = bench.engine.submit(asked((7, 8), max_new_tokens=6))
        await bench.thread.steps(2)
        bench.engine.pause()
        bench.thread.allow()
        while bench.metric("plaudit_policy_decode_step_seconds_count") < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        for _ in range(50):
            await asyncio.sleep(0)
        assert bench.metric("plaudit_policy_decode_step_seconds_count") == 3
        assert not generation.done
        bench.engine.resume()
        (response,) = await generation.all()
        assert list(response.token_ids) == continued(bench.model.loaded, (7, 8), [], 6, seed=0)


class TestRefusals:
    @pytest.mark.parametrize("how", [{"step_exactly": 1}, {"step_at_least": 1}])
    async def test_a_step_that_is_not_loaded(self, bench, how):
        with pytest.raises(PreconditionFailed, match=r"step 0 is loaded, not .*step 1") as caught:
            bench.engine.submit(asked((7, 8), **how))
        assert caught.value.kind == "STEP"
        assert bench.engine.queue.waiting_items == 0

    @pytest.mark.parametrize("how", [{"step_exactly": 0}, {"step_at_least": 0}])
    async def test_a_step_that_is_loaded(self, bench, how):
        assert len(await bench.generate((7, 8), **how)) == 1

    async def test_a_full_queue(self, make_bench):
        bench = make_bench(call_limits=CallLimits(max_items=1))
        bench.engine.pause()
        waiting = [bench.engine.submit(asked((7,))) for _ in range(WAITING_CALLS)]
        words = f"{WAITING_CALLS} items of {9 * WAITING_CALLS} tokens"
        with pytest.raises(Overloaded, match=words):
            bench.engine.submit(asked((7,)))
        bench.engine.resume()
        await asyncio.gather(*[generation.all() for generation in waiting])
        assert len(await bench.generate((7,))) == 1


class TestFailure:
    async def test_broken_weights_fail_the_request_and_not_the_engine(self, bench):
        norm = bench.model.loaded.model.get_parameter("model.norm.weight")
        healthy = norm.clone()
        with torch.no_grad():
            norm[0] = float("nan")
        with pytest.raises(NotFinite):
            await bench.generate((7, 8), (9,))
        with torch.no_grad():
            norm.copy_(healthy)
        assert len(await bench.generate((7, 8))) == 1
        assert bench.engine.queue.waiting_items == 0
        assert bench.metric("plaudit_policy_sequences_total", finish_reason="dropped") == 2

    async def test_closing_ends_everything(self, bench):
        running = bench.engine.submit(asked((7, 8), max_new_tokens=100))
        await bench.thread.steps(1)
        waiting = bench.engine.submit(asked((9,)))
        await bench.engine.close()
        for generation in (running, waiting):
            with pytest.raises(NotServing):
                await generation.all()
        with pytest.raises(NotServing):
            bench.engine.submit(asked((9,)))


async def test_metrics(bench):
    await bench.generate((7, 8), (9,), max_new_tokens=3)
    assert bench.metric("plaudit_policy_generated_tokens_total") == 6
    assert bench.metric("plaudit_policy_sequences_total", finish_reason="length") == 2
    assert bench.metric("plaudit_policy_batch_rows_sum") == 6
    assert bench.metric("plaudit_policy_decode_step_seconds_count") == 3
    assert bench.metric("plaudit_policy_queue_wait_seconds_count") == 1
