"""score_many: results in order, a window that holds, streams that break, callers that leave."""

import asyncio
import gc
import threading
import time

import grpc
import pytest
from scripted_servers import refuse, refuse_plainly
from scripted_streams import GONE, expected, pairs, scored

import plaudit
from plaudit import (
    AsyncRewardClient,
    Chat,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ItemFailure,
    NotFound,
    Overloaded,
    Reward,
    RewardClient,
    Unauthenticated,
    Unavailable,
    Unreachable,
    Violation,
)
from plaudit.clients import flight, token as client_token
from plaudit.clients.budget import Budget
from plaudit.clients.replicas import Replicas
from plaudit.clients.score_many import NOT_YET
from plaudit.clients.streams import MESSAGE_BYTES, MESSAGE_ITEMS
from plaudit.v1 import reward_pb2

Code = grpc.StatusCode


@pytest.fixture
def quick_pauses(monkeypatch):
    monkeypatch.setattr(flight, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(flight, "LONGEST_PAUSE", 0.01)


def threads():
    return {
        thread for thread in threading.enumerate() if "plaudit" in thread.name or "consume" in thread.name
    }


def eventually(holds, seconds=30):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


# ---- results ----


@pytest.mark.parametrize("behaviour", ["answer", "answer_backwards", "answer_at_the_end"])
def test_results_are_in_the_order_of_the_items(serve_streams, streams, score_many, behaviour):
    server = serve_streams(getattr(streams, behaviour))
    assert list(score_many(server.address, pairs(300))) == expected(300)
    assert len(streams.heard) == 1


def test_no_items_need_no_stream(serve_streams, streams, score_many):
    server = serve_streams(streams.answer)
    assert list(score_many(server.address, [])) == []
    assert streams.heard == []


@pytest.mark.parametrize("window", [1, 2, 3, 64])
def test_any_window_does(serve_streams, streams, score_many, window):
    server = serve_streams(streams.answer_backwards)
    assert list(score_many(server.address, pairs(100), window=window)) == expected(100)


def test_any_iterable_does(serve_streams, streams, score_many):
    server = serve_streams(streams.answer)
    assert list(score_many(server.address, iter(pairs(5)))) == expected(5)
    assert list(score_many(server.address, dict.fromkeys(pairs(5)))) == expected(5)
    assert list(score_many(server.address, (pair for pair in pairs(5)))) == expected(5)


def test_options_go_with_the_first_message(serve_streams, streams, score_many):
    server = serve_streams(streams.answer)
    options = {"model": "m", "truncation": "left", "priority": "low", "include_components": True}
    list(score_many(server.address, pairs(200), window=100, tokenizer_sha256="ab", **options))
    first, *rest = streams.heard[0]
    assert first.options == reward_pb2.ScoreOptions(
        model="m",
        truncation=reward_pb2.TRUNCATION_LEFT,
        priority=reward_pb2.PRIORITY_LOW,
        include_components=True,
    )
    assert first.tokenizer_sha256 == "ab"
    assert not any(message.HasField("options") or message.tokenizer_sha256 for message in rest)


@pytest.mark.parametrize(
    ("named", "field"),
    [
        ({"window": 0}, "window"),
        ({"timeout": 0}, "timeout"),
        ({"truncation": "middle"}, "options.truncation"),
        ({"priority": "now"}, "options.priority"),
        ({"model": 3}, "options.model"),
    ],
)
def test_arguments_that_cannot_be_are_told_at_once(named, field):
    for client in (RewardClient("127.0.0.1:1"), AsyncRewardClient("127.0.0.1:1")):
        with pytest.raises(InvalidArgument) as caught:
            client.score_many([], **named)
        assert caught.value.violations[0].field == field


def test_what_cannot_be_sent_is_a_failure_of_its_own(serve_streams, streams, score_many, monkeypatch):
    monkeypatch.setattr(flight, "MAX_ITEM_BYTES", 1000)
    items = [("p", "0"), "text", ("p", None), Chat([("user",)]), ("p", "4" * 2000), [1, -1], ("p", "6")]
    results = list(score_many(serve_streams(streams.answer).address, items))
    assert [results[0], results[6]] == [Reward(0, 0, 1), Reward(6, 3, 1)]
    failures = results[1:6]
    assert {failure.code for failure in failures} == {"INVALID_ARGUMENT"}
    assert [failure.violations[0].field for failure in failures] == [
        "item",
        "item.pair.response",
        "item.chat.messages[0]",
        "item",
        "item.token_ids.ids[1]",
    ]
    assert streams.numbers(0) == [0, 6]


def test_nothing_that_can_be_sent(serve_streams, streams, score_many):
    results = list(score_many(serve_streams(streams.answer).address, ["text"] * 20, window=3))
    assert [type(result) for result in results] == [ItemFailure] * 20
    assert streams.heard == []


def test_an_item_that_fails_has_its_place(serve_streams, streams, score_many):
    def answer(requests, context):
        for request in streams.listen(requests, context):
            response = scored(request.items)
            for one in response.results:
                if int(one.item_id) % 3 == 1:
                    one.result.error.code = 3
                    one.result.error.message = "no"
                    one.result.error.field_violations.add(field="item.pair.prompt", description="no")
            yield response

    results = list(score_many(serve_streams(answer).address, pairs(9)))
    failure = ItemFailure("INVALID_ARGUMENT", "no", (Violation("item.pair.prompt", "no"),))
    assert results == [failure if i % 3 == 1 else reward for i, reward in enumerate(expected(9))]


# ---- the window and the messages ----


@pytest.mark.parametrize("window", [1, 7, 100])
def test_no_more_than_the_window_is_read_ahead(serve_streams, streams, score_many, window):
    taken = 0

    def items():
        nonlocal taken
        for pair in pairs(300):
            taken += 1
            yield pair

    server = serve_streams(streams.answer)
    ahead = [taken - given for given, _ in enumerate(score_many(server.address, items(), window=window))]
    assert len(ahead) == 300
    assert max(ahead) <= window
    assert taken == 300


def test_a_silent_service_is_sent_the_window_and_no_more(serve_streams, streams, score_many):
    server = serve_streams(streams.never_answer)
    with pytest.raises(DeadlineExceeded, match=r"no result within 2\.0 s"):
        next(score_many(server.address, pairs(1000), window=50, timeout=2))
    assert streams.numbers(0) == list(range(50))


def test_messages_hold_several_items_but_not_too_much(serve_streams, streams, score_many):
    gate = threading.Event()

    def answer(requests, context):
        gate.wait(30)  # what is sent meanwhile is packed
        yield from streams.answer(requests, context)

    def items():
        for number, pair in enumerate(pairs(500)):
            if number == 400:
                gate.set()
            yield pair
        for _ in range(4):
            yield ("x" * (MESSAGE_BYTES // 2), "9")

    results = list(score_many(serve_streams(answer).address, items(), window=504))
    assert len(results) == 504
    sizes = [len(message.items) for message in streams.heard[0]]
    assert max(sizes) <= MESSAGE_ITEMS
    assert max(message.ByteSize() for message in streams.heard[0]) < 2 * MESSAGE_BYTES
    assert len(sizes) < 300


def test_an_item_is_not_kept_back_until_there_are_more(serve_streams, streams):
    """A source that goes on only when the first result is there: a task of its own takes the items."""

    async def run():
        seen = asyncio.Event()

        async def items():
            yield ("p", "0")
            await asyncio.wait_for(seen.wait(), 30)
            yield ("p", "1")

        async with AsyncRewardClient(serve_streams(streams.answer).address) as client:
            results = []
            async for result in client.score_many(items()):
                results.append(result)
                seen.set()
            return results

    assert asyncio.run(run()) == expected(2)
    assert [len(message.items) for message in streams.heard[0]] == [1, 1]


def test_async_items(serve_streams, streams):
    async def items():
        for pair in pairs(100):
            await asyncio.sleep(0)
            yield pair

    async def run():
        async with AsyncRewardClient(serve_streams(streams.answer).address) as client:
            return [result async for result in client.score_many(items(), window=9)]

    assert asyncio.run(run()) == expected(100)


def test_a_slow_source_is_no_silent_service(serve_streams, streams):
    async def items():
        yield ("p", "0")
        await asyncio.sleep(1.3)
        yield ("p", "1")

    async def run():
        async with AsyncRewardClient(serve_streams(streams.answer).address) as client:
            return [result async for result in client.score_many(items(), timeout=1)]

    assert asyncio.run(run()) == expected(2)


def test_a_slow_reader_is_no_silent_service(serve_streams, streams, score_many):
    results = score_many(serve_streams(streams.answer).address, pairs(10), window=5, timeout=1)
    first = next(results)
    time.sleep(1.3)
    assert [first, *results] == expected(10)


def test_a_loop_that_has_no_time_is_no_silent_service(serve_streams, streams):
    async def run():
        async with AsyncRewardClient(serve_streams(streams.answer).address) as client:
            results = client.score_many(pairs(4), window=1, timeout=1)
            got = [await anext(results)]
            for _ in range(3):
                following = asyncio.create_task(anext(results))
                await asyncio.sleep(0.001)
                time.sleep(1.2)  # noqa: ASYNC251  another task's fault
                got.append(await following)
            return got

    assert asyncio.run(run()) == expected(4)


def test_many_at_once_in_one_loop(serve_streams, streams):
    async def run():
        async with AsyncRewardClient(serve_streams(streams.answer).address) as client:

            async def one(start):
                return [result async for result in client.score_many(pairs(50, start), window=8)]

            return await asyncio.gather(*(one(100 * number) for number in range(4)))

    assert asyncio.run(run()) == [expected(50, 100 * number) for number in range(4)]


# ---- what the items raise ----


def test_what_the_items_raise_comes_out_after_the_results_before(serve_streams, streams, score_many):
    class Broken(Exception):
        pass

    def items():
        yield from pairs(30)
        raise Broken("line 31")

    results, server = [], serve_streams(streams.answer)
    with pytest.raises(Broken, match="line 31"):
        for result in score_many(server.address, items(), window=10):
            results.append(result)  # noqa: PERF402
    assert results == expected(30)


def test_items_that_are_no_iterable(serve_streams, streams):
    with RewardClient(serve_streams(streams.answer).address) as client, pytest.raises(TypeError):
        list(client.score_many(3))


# ---- streams that break ----


@pytest.mark.parametrize("end", [GONE, None, refuse(Code.RESOURCE_EXHAUSTED, "full", pushback_ms=1)])
def test_a_broken_stream_is_opened_again_for_what_has_no_result(
    serve_streams, streams, score_many, quick_pauses, end
):
    server = serve_streams(
        streams.answer_then(10, end, heard=30), streams.answer_then(7, end, heard=27), streams.answer
    )
    assert list(score_many(server.address, pairs(100), window=20)) == expected(100)
    assert len(streams.heard) == 3
    assert streams.numbers(1)[0] == 10, "what has a result isn't sent again"
    assert streams.numbers(2)[0] == 17
    assert streams.numbers(2)[-1] == 99


def test_options_go_with_each_stream(serve_streams, streams, score_many, quick_pauses):
    server = serve_streams(streams.answer_then(1, GONE), streams.answer)
    list(score_many(server.address, pairs(3), model="m"))
    assert [messages[0].options.model for messages in streams.heard] == ["m", "m"]


def test_a_stream_that_breaks_when_all_was_sent(serve_streams, streams, score_many, quick_pauses):
    """The second stream is told that nothing more comes, or it would never end."""
    server = serve_streams(streams.answer_then(2, GONE), streams.answer_at_the_end)
    assert list(score_many(server.address, pairs(5))) == expected(5)


def test_a_service_that_starts_again_is_found(serve_streams, streams, score_many):
    first = serve_streams(streams.answer)
    results = score_many(first.address, pairs(200), window=4, timeout=30)
    got = [next(results) for _ in range(10)]
    first.stop()
    serve_streams(streams.answer, address=first.address)
    got.extend(results)
    assert got == expected(200)


@pytest.fixture
def seldom():
    """Items of which none comes until `go` is set."""
    go = threading.Event()

    def items(first):
        yield from first
        while not go.is_set():
            time.sleep(0.01)
            yield NOT_YET
        yield ("p", str(len(first)))

    return items, go


def test_results_are_given_while_no_further_item_comes(serve_streams, streams, seldom):
    items, go = seldom
    with RewardClient(serve_streams(streams.answer).address) as client:
        results = client.score_many(items(pairs(3)))
        assert [next(results) for _ in range(3)] == expected(3)
        go.set()
        assert list(results) == expected(1, start=3)


def test_nor_is_a_silent_service_waited_for_meanwhile(serve_streams, streams, seldom):
    items, _ = seldom
    server = serve_streams(streams.never_answer)
    client = RewardClient(server.address, timeout=0.3)
    with client, pytest.raises(DeadlineExceeded, match=r"no result within 0\.3 s"):
        next(client.score_many(items(pairs(3))))


def with_weights(digest, behave):
    """The behaviour, by a model of these weights."""

    def behave_so(requests, context):
        for response in behave(requests, context):
            response.model.model_id, response.model.weights_sha256 = "tiny", digest
            yield response

    return behave_so


def test_a_stream_goes_on_at_the_same_weights_only(serve_streams, streams, score_many, quick_pauses):
    """Rewards of two models in one list would be compared with each other."""
    broken = with_weights("one" * 8, streams.answer_then(10, GONE, heard=30))
    server = serve_streams(broken, with_weights("one" * 8, streams.answer))
    assert list(score_many(server.address, pairs(40), window=20)) == expected(40)
    server = serve_streams(broken, with_weights("two" * 8, streams.answer))
    results = score_many(server.address, pairs(40), window=20)
    got = []
    with pytest.raises(FailedPrecondition, match=r"weights two\w+ of 'tiny' go on where one\w+ began"):
        for result in results:
            got.append(result)  # noqa: PERF402
    assert got == expected(len(got))
    assert len(got) >= 10


def test_how_often_in_a_row_is_bounded(serve_streams, streams, score_many, quick_pauses, monkeypatch):
    monkeypatch.setattr(Budget, "has_some", True)
    server = serve_streams(streams.answer_then(0, GONE))
    with pytest.raises(Unavailable, match="draining"):
        list(score_many(server.address, pairs(3)))
    assert len(streams.heard) == 1 + flight.REOPENINGS


def test_a_result_makes_it_worth_going_on(serve_streams, streams, score_many, quick_pauses):
    count = 3 * flight.REOPENINGS
    server = serve_streams(streams.answer_then(1, GONE))
    assert list(score_many(server.address, pairs(count))) == expected(count)
    assert len(streams.heard) >= count


OVER = refuse(Code.DEADLINE_EXCEEDED, "the stream's deadline")


def test_a_stream_that_ends_with_its_deadline_is_no_failure(serve_streams, streams, score_many, monkeypatch):
    """Neither of the address nor, however often it happens, of the scoring; and nobody pauses."""
    monkeypatch.setattr(flight.Endurance, "pause_after", lambda *_: pytest.fail("it counts as a break"))
    monkeypatch.setattr(Replicas, "failed", lambda *_: pytest.fail("it counts against the address"))
    count = flight.REOPENINGS + 5
    server = serve_streams(*[streams.answer_then(1, OVER, heard=2)] * count, streams.answer)
    assert list(score_many(server.address, pairs(2 * count), window=2)) == expected(2 * count)
    assert len(streams.heard) == count + 1


def test_a_stream_that_brought_nothing_before_its_deadline_is_one(
    serve_streams, streams, score_many, quick_pauses
):
    server = serve_streams(streams.answer_then(0, OVER))
    with pytest.raises(DeadlineExceeded):
        list(score_many(server.address, pairs(3)))
    assert len(streams.heard) == 1 + flight.REOPENINGS


def test_the_wait_for_a_service_is_bounded_by_the_timeout(serve_streams, streams, score_many):
    later = refuse(Code.RESOURCE_EXHAUSTED, "full", pushback_ms=60_000)
    server = serve_streams(streams.answer_then(0, later))
    with pytest.raises(Overloaded) as caught:
        list(score_many(server.address, pairs(3), timeout=30))
    assert caught.value.retry_after == 60
    assert len(streams.heard) == 1


def test_the_service_is_not_asked_before_it_wants_to_be(serve_streams, streams, score_many, quick_pauses):
    times = []

    def full_then_fine(requests, context):
        times.append(time.monotonic())
        if len(times) == 1:
            refuse(Code.RESOURCE_EXHAUSTED, "full", pushback_ms=400)(None, context)
        yield from streams.answer(requests, context)

    assert list(score_many(serve_streams(full_then_fine).address, pairs(3))) == expected(3)
    assert times[1] - times[0] >= 0.4


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        (refuse(Code.NOT_FOUND, "no model 'm' here"), NotFound),
        (refuse(Code.FAILED_PRECONDITION, "another tokenizer"), FailedPrecondition),
        (refuse(Code.INVALID_ARGUMENT, "no"), InvalidArgument),
        (refuse_plainly(Code.INTERNAL, "broken"), Internal),
    ],
)
def test_what_would_fail_again_is_raised_at_once(serve_streams, streams, score_many, end, kind):
    server = serve_streams(streams.answer_then(3, end))
    results = score_many(server.address, pairs(1000))
    with pytest.raises(kind) as caught:
        list(results)
    assert len(streams.heard) == 1
    assert caught.value.where.method == "ScoreStream"
    assert caught.value.where.target == server.address


REVOKED = refuse_plainly(Code.UNAUTHENTICATED, "wrong, or revoked")


@pytest.fixture
def token_file(tmp_path, monkeypatch):
    """Holds "old", and is looked at by every call."""
    monkeypatch.setattr(client_token, "CHECK_S", 0.0)
    file = tmp_path / "token"
    file.write_text("old")
    return file


def test_a_stream_whose_token_was_rotated_goes_on_with_the_new_one(
    serve_streams, streams, score_many, token_file
):
    shown = []

    def revoked(_, context):
        token_file.write_text("new")
        REVOKED(None, context)

    def remembering(behave):
        def run(requests, context):
            shown.append(dict(context.invocation_metadata())["authorization"])
            return behave(requests, context)

        return run

    server = serve_streams(remembering(streams.answer_then(3, revoked)), remembering(streams.answer))
    results = score_many(server.address, pairs(40), client={"token_file": token_file}, window=8)
    assert list(results) == expected(40)
    assert shown == ["Bearer old", "Bearer new"]


def test_a_token_that_is_revoked_and_not_rotated_ends_it(serve_streams, streams, score_many, token_file):
    server = serve_streams(streams.answer_then(3, REVOKED, heard=8))
    results = score_many(server.address, pairs(9), client={"token_file": token_file}, window=5)
    assert [next(results) for _ in range(3)] == expected(3)
    with pytest.raises(Unauthenticated):
        next(results)
    assert len(streams.heard) == 1


def test_nobody_there(score_many, unused_address):
    with pytest.raises(Unreachable, match=unused_address):
        list(score_many(unused_address, pairs(3), timeout=0.5))


def test_waits_for_a_service_that_is_not_up_yet(serve_streams, streams, score_many, unused_address):
    timer = threading.Timer(0.5, lambda: serve_streams(streams.answer, address=unused_address))
    timer.start()
    results = score_many(unused_address, pairs(3), client={"wait_for_ready": True}, timeout=30)
    assert list(results) == expected(3)
    timer.join()


def test_another_address_goes_on(serve_streams, streams, score_many, quick_pauses, unused_address):
    server = serve_streams(streams.answer)
    assert list(score_many([unused_address, server.address], pairs(9))) == expected(9)


def test_a_result_for_what_was_not_asked_is_no_guess(serve_streams, streams, score_many):
    def answer(requests, context):
        for request in streams.listen(requests, context):
            yield scored([*request.items, reward_pb2.StreamItem(item_id="77", item=request.items[0].item)])

    with pytest.raises(Internal, match="'77'"):
        list(score_many(serve_streams(answer).address, pairs(1)))


def test_a_result_that_comes_twice_is_no_guess(serve_streams, streams, score_many):
    def answer(requests, context):
        for request in streams.listen(requests, context):
            yield scored([*request.items, *request.items])

    with pytest.raises(Internal, match="'0'"):
        list(score_many(serve_streams(answer).address, pairs(1)))


# ---- callers that leave ----


def test_leaving_ends_the_stream_at_once_and_leaves_no_thread(serve_streams, streams, score_many):
    before = threads()
    results = score_many(serve_streams(streams.answer).address, pairs(100), window=10)
    assert next(results) == expected(1)[0]
    results.close()
    assert streams.ended.acquire(timeout=30)
    eventually(lambda: threads() <= before)


def test_a_generator_that_is_dropped_ends_the_stream(serve_streams, streams):
    before = threads()
    with RewardClient(serve_streams(streams.answer).address) as client:
        results = client.score_many(pairs(100), window=10)
        next(results)
        del results
        gc.collect()
        assert streams.ended.acquire(timeout=30)
        eventually(lambda: threads() <= before)


def test_a_task_that_is_cancelled_ends_the_stream(serve_streams, streams):
    before = threads()

    async def run():
        async with AsyncRewardClient(serve_streams(streams.never_answer).address) as client:

            async def read():
                async for _ in client.score_many(pairs(100), window=10):
                    pass

            task = asyncio.create_task(read())
            await asyncio.to_thread(eventually, lambda: bool(streams.heard))
            await asyncio.to_thread(streams.wait_for_items, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())
    assert streams.ended.acquire(timeout=30)
    eventually(lambda: threads() <= before)


def test_a_loop_that_ends_ends_the_stream(serve_streams, streams):
    """An async generator that nobody closed is closed with its loop."""
    before = threads()

    async def run():
        client = AsyncRewardClient(serve_streams(streams.answer).address)
        results = client.score_many(pairs(100), window=10)
        await anext(results)
        return client, results

    client, results = asyncio.run(run())
    assert streams.ended.acquire(timeout=30)
    eventually(lambda: threads() <= before)
    del client, results


def test_a_generator_that_was_never_started_opens_nothing(serve_streams, streams):
    before = threads()
    with RewardClient(serve_streams(streams.answer).address) as client:
        client.score_many(pairs(3)).close()
    assert (threads(), streams.heard) == (before, [])


def test_closing_the_client_ends_its_streams(serve_streams, streams):
    client = RewardClient(serve_streams(streams.answer).address)
    results = client.score_many(pairs(1000), window=5)
    next(results)
    client.close()
    with pytest.raises((plaudit.PlauditError, ValueError)):
        list(results)
    assert streams.ended.acquire(timeout=30)


def test_all_threads_are_gone_when_all_is_done(serve_streams, streams, score_many, quick_pauses):
    before = threads()
    server = serve_streams(*[streams.answer_then(3, GONE)] * 5, streams.answer)
    assert list(score_many(server.address, pairs(50), window=10)) == expected(50)
    eventually(lambda: threads() <= before)
