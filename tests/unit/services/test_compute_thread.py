"""The compute thread: order, bounds, cancellation, deadlines, context, end."""

import asyncio
import threading
import time

import pytest

from services.compute import CancelFlag, ComputeThread
from services.errors import NotServing, Overloaded, TooLate
from services.rpc.logs import request_id


@pytest.fixture
async def thread():
    made = ComputeThread("test", max_waiting=3)
    yield made
    await asyncio.wait_for(made.close(), 10)


@pytest.fixture
def gate():
    opened = threading.Event()
    yield opened
    opened.set()


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - threads set no asyncio event
            await asyncio.sleep(0)


async def test_runs_in_one_other_thread(thread):
    names = [await thread.run(lambda: threading.current_thread().name) for _ in range(2)]
    assert names == ["test", "test"]


async def test_passes_arguments_results_and_errors(thread):
    assert await thread.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await thread.run(divmod, 7, 0)
    assert await thread.run(divmod, 9, 2) == (4, 1)


async def test_stop_iteration_does_not_hang_the_caller(thread):
    with pytest.raises(RuntimeError, match="StopIteration"):
        await thread.run(next, iter(()))


async def test_first_come_first_served(thread):
    seen = []
    await asyncio.gather(*(thread.run(seen.append, number) for number in range(3)))
    assert seen == [0, 1, 2]


async def test_the_loop_is_free_while_it_computes(thread, gate):
    blocked = asyncio.create_task(thread.run(gate.wait))
    await until(lambda: thread.waiting == 1)
    await asyncio.sleep(0)
    assert not blocked.done()
    gate.set()
    assert await blocked is True


async def test_a_full_queue_turns_away_with_when_to_come_back(thread, gate):
    tasks = [asyncio.create_task(thread.run(gate.wait)) for _ in range(3)]
    await until(lambda: thread.waiting == 3)
    with pytest.raises(Overloaded, match="3 requests wait already") as caught:
        await thread.run(int)
    assert caught.value.retry_after > 0
    gate.set()
    await asyncio.gather(*tasks)
    assert thread.waiting == 0
    assert await thread.run(int) == 0


async def test_cancelling_the_caller_sets_the_flag_of_running_work(thread):
    flag, started = CancelFlag(), threading.Event()

    def work():
        started.set()
        while not flag.is_set():
            time.sleep(0.001)
        return "stopped"

    task = asyncio.create_task(thread.run(work, cancel=flag))
    await until(started.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await thread.run(lambda: "free again") == "free again"


async def test_cancelled_work_that_waits_never_runs(thread, gate):
    seen = []
    blocked = asyncio.create_task(thread.run(gate.wait))
    waits = asyncio.create_task(thread.run(seen.append, 1))
    await until(lambda: thread.waiting == 2)
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    gate.set()
    await blocked
    await thread.run(int)
    assert seen == []


async def test_work_whose_deadline_passed_while_it_waited_never_runs(thread, gate):
    seen = []
    blocked = asyncio.create_task(thread.run(gate.wait))
    late = asyncio.create_task(thread.run(seen.append, 1, deadline=time.monotonic()))
    await until(lambda: thread.waiting == 2)
    gate.set()
    with pytest.raises(TooLate):
        await late
    await blocked
    assert seen == []
    assert await thread.run(int, deadline=time.monotonic() + 60) == 0


async def test_the_callers_request_id_is_known_in_the_thread(thread):
    token = request_id.set("r-7")
    assert await thread.run(request_id.get) == "r-7"
    request_id.reset(token)
    assert await thread.run(request_id.get) == ""


async def test_close_refuses_what_waits_and_what_comes(gate):
    thread, flag, started = ComputeThread("test"), CancelFlag(), threading.Event()

    def work():
        started.set()
        return gate.wait()

    running = asyncio.create_task(thread.run(work, cancel=flag))
    waits = asyncio.create_task(thread.run(int))
    await until(lambda: started.is_set() and thread.waiting == 2)
    closing = asyncio.create_task(thread.close())
    await until(flag.is_set)
    gate.set()
    await closing
    assert await running is True
    with pytest.raises(NotServing):
        await waits
    with pytest.raises(NotServing):
        await thread.run(int)


def test_a_result_for_a_loop_that_has_closed_is_dropped():
    gate, done = threading.Event(), threading.Event()
    thread = ComputeThread("test")

    def work():
        gate.wait()
        done.set()

    async def abandon():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(thread.run(work), 0.05)

    asyncio.run(abandon())
    gate.set()
    assert done.wait(10)
    asyncio.run(asyncio.wait_for(thread.close(), 10))
