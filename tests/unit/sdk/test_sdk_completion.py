"""`as_completed` and thousands of awaits over real HTTP: few connections, whatever happens to them."""

import asyncio
import gc
import threading
import time
import tracemalloc
import weakref

import pytest

from brinery import AuthenticationError, ConflictError, Future, NotFoundError, as_completed
from brinery.client import Client
from brinery.waits import DIRECT_POLLS, MAX_STREAM_IDS

DEADLINE_SECONDS = 30.0


@pytest.fixture
def make(gateway, client):
    """Makes open tasks, and returns their futures."""

    def make(count, first=0):
        ids = [f"tsk_{number}" for number in range(first, first + count)]
        for task_id in ids:
            gateway.tasks[task_id] = {"id": task_id, "endpoint": "f", "status": "queued", "error": None}
        return [Future.from_id(task_id, client=client) for task_id in ids]

    return make


@pytest.fixture(params=["for", "async for"])
def completed(request):
    """Calls a function with each future as it is completed, in an ordinary loop or in an async one."""

    def completed(futures, function=id, **options):
        if request.param == "for":
            for future in as_completed(futures, **options):
                function(future)
            return

        async def run():
            async for future in as_completed(futures, **options):
                function(future)

        asyncio.run(run())

    return completed


def until(true):
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


async def until_true(true):
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def in_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def polls(gateway):
    return [path for method, path, _ in gateway.requests if method == "GET"]


# --------------------------------------------------------------------------------------------------- as_completed
def test_futures_come_as_they_finish_over_one_connection_and_have_their_results(gateway, make, completed):
    futures, seen = make(5), []

    def finish():
        until(lambda: gateway.following)
        for number in (3, 0, 4, 1, 2):
            gateway.succeed(f"tsk_{number}", number)
            until(lambda: len(seen) == (3, 0, 4, 1, 2).index(number) + 1)  # noqa: B023 - called before the next one

    thread = in_thread(finish)
    completed(futures, lambda future: seen.append(future.get()))
    thread.join()
    assert seen == [3, 0, 4, 1, 2]
    assert len(gateway.requests) == 1


def test_futures_known_to_be_final_come_first_and_nobody_is_asked_about_them(gateway, make, completed):
    known, other = make(2)
    gateway.succeed(known.id, 1)
    gateway.succeed(other.id, 2)
    known.get()
    order = []
    completed([other, known], order.append)
    assert order == [known, other]
    assert gateway.following == [[other.id]]
    asked = len(gateway.requests)
    completed([other, known], order.append)
    completed([], order.append)
    assert len(gateway.requests) == asked


def test_a_future_given_twice_comes_once_and_two_futures_of_one_task_both_come(gateway, client, make, completed):
    (future,) = make(1)
    twin = Future.from_id(future.id, client=client)
    gateway.succeed(future.id, 1)
    order = []
    completed(iter([future, twin, future]), order.append)
    assert order == [future, twin]


def test_what_is_returned_is_an_iterator(gateway, make):
    futures = make(2)
    for future in futures:
        gateway.succeed(future.id, 1)
    completed = as_completed(futures)
    assert {next(completed), next(completed)} == set(futures)
    with pytest.raises(StopIteration):
        next(completed)

    async def run():
        return await anext(as_completed(futures))

    assert asyncio.run(run()) in futures


def test_a_task_that_is_not_there_raises_and_is_named(gateway, client, make, completed):
    (future,) = make(1)
    with pytest.raises(NotFoundError, match="tsk_nobody"):
        completed([future, Future.from_id("tsk_nobody", client=client)])
    until(lambda: not gateway.streams)


def test_when_the_time_is_over_it_says_how_many_are_not_finished(gateway, make, completed):
    futures, seen = make(3), []
    gateway.succeed(futures[1].id, "done")
    with pytest.raises(TimeoutError, match="2 of 3 tasks are not finished in time; they go on"):
        completed(futures, seen.append, timeout=0.5)
    assert seen == [futures[1]]
    until(lambda: not gateway.streams)
    gateway.succeed(futures[0].id, "late")
    gateway.succeed(futures[2].id, "late")
    completed(futures, seen.append, timeout=DEADLINE_SECONDS)
    assert len(seen) == 4


def test_a_connection_that_is_cut_is_opened_again_for_what_is_left(gateway, make, completed):
    futures, seen = make(3), []

    def finish():
        for number in range(3):
            until(lambda: gateway.streams == 1)
            gateway.succeed(f"tsk_{number}", number)
            until(lambda: len(seen) > number)  # noqa: B023 - called before the next one
            gateway.drops_waiting.append("POST")
            until(lambda: not gateway.drops_waiting or len(seen) == 3)

    thread = in_thread(finish)
    completed(futures, lambda future: seen.append(future.id))
    thread.join()
    assert seen == ["tsk_0", "tsk_1", "tsk_2"]
    assert [sorted(ids) for ids in gateway.following] == [seen, seen[1:], seen[2:]]


def test_a_gateway_that_restarts_does_no_harm(gateway, make, completed):
    futures, seen = make(2), []

    def restart():
        until(lambda: gateway.following)
        gateway.succeed("tsk_1", 1)
        until(lambda: seen)
        gateway.stop()
        gateway.succeed("tsk_0", 0)
        gateway.start()

    thread = in_thread(restart)
    completed(futures, lambda future: seen.append(future.get()))
    thread.join()
    assert seen == [1, 0]


def test_leaving_the_loop_closes_the_connection_and_the_tasks_go_on(gateway, make):
    futures = make(3)
    gateway.succeed(futures[0].id, 1)
    for _ in as_completed(futures):
        break
    until(lambda: not gateway.streams)
    assert not [thread for thread in threading.enumerate() if thread.name == "brinery-loop"]

    async def run():
        async for _ in as_completed(futures[1:]):
            break
        await until_true(lambda: not gateway.streams)

    gateway.succeed(futures[1].id, 1)
    asyncio.run(run())
    assert gateway.tasks[futures[2].id]["status"] == "queued"


def test_more_than_one_connection_can_hold_are_followed_over_several(gateway, make, completed):
    futures, last = make(MAX_STREAM_IDS + 1), []
    for future in futures[:-2]:
        gateway.tasks[future.id].update(status="succeeded", result=1, result_inline=True)
    seen = set()

    def finish():
        until(lambda: len(seen) == MAX_STREAM_IDS - 1)
        for future in futures[-2:]:
            last.append(future)
            gateway.succeed(future.id, 1)
            until(lambda: future in seen)  # noqa: B023 - called before the next one

    thread = in_thread(finish)
    completed(futures, seen.add)
    thread.join()
    assert seen == set(futures)
    assert sorted(map(len, gateway.following)) == [1, MAX_STREAM_IDS]


def test_what_the_gateway_refuses_is_raised(gateway, make, completed):
    stranger = Client(gateway.url, "brn_wrong")
    with pytest.raises(AuthenticationError):
        completed([Future.from_id(future.id, client=stranger) for future in make(1)])
    stranger.close()


def test_futures_that_are_let_go_take_their_results_with_them(gateway, make, completed):
    futures, size = make(2_000), 32 * 1024
    text = "x" * size
    for future in futures:
        gateway.tasks[future.id].update(status="succeeded", result=text, result_inline=True)
    futures = iter([futures.pop() for _ in range(len(futures))])
    tracemalloc.start()
    completed(futures)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000 * size / 3, peak


# ----------------------------------------------------------------------------------------------------- many awaits
def test_thousands_are_awaited_over_a_few_connections_and_without_a_thread_each(gateway, make):
    futures = make(5_000)

    async def run():
        waits = asyncio.gather(*futures)
        await until_true(lambda: sum(map(len, gateway.following)) >= 5_000 - DIRECT_POLLS)
        ours = [thread for thread in threading.enumerate() if "process_request" not in thread.name]
        for number, future in enumerate(futures):
            gateway.tasks[future.id].update(status="succeeded", result=number, result_inline=True)
        return await waits, len(ours)

    before = len([thread for thread in threading.enumerate() if "process_request" not in thread.name])
    results, threads = asyncio.run(run())
    assert results == list(range(5_000))
    assert threads == before
    assert len(polls(gateway)) <= DIRECT_POLLS
    assert len(gateway.following) < 16


def test_awaits_that_come_one_by_one_share_streams_too(gateway, make):
    futures = make(DIRECT_POLLS + 200)
    open_at_once = []

    async def run():
        waits = []
        for future in futures:
            waits.append(asyncio.ensure_future(future.aget()))
            await asyncio.sleep(0.006)
            open_at_once.append(gateway.streams)
        for future in futures:
            gateway.succeed(future.id, future.id)
        return await asyncio.gather(*waits)

    assert asyncio.run(run()) == [future.id for future in futures]
    assert max(open_at_once) < 50, "about log2 of the number that waits, and those that have just been closed"
    assert sum(map(len, gateway.following)) < 200 * 16


@pytest.fixture
def crowd(gateway, make):
    """Takes all direct polls of the loop, so that the next awaits share a stream; ends them with their tasks."""

    async def crowd(function):
        futures = make(DIRECT_POLLS, first=100_000)
        waits = [asyncio.ensure_future(future.aget()) for future in futures]
        await until_true(lambda: len(polls(gateway)) >= DIRECT_POLLS)
        try:
            return await function()
        finally:
            for future in futures:
                gateway.succeed(future.id, None)
            await asyncio.gather(*waits)

    return crowd


def test_a_shared_await_has_its_timeout_and_leaves_the_others_alone(gateway, make, crowd):
    futures = make(3)

    async def run():
        patient = asyncio.ensure_future(futures[0].aget())
        impatient = [asyncio.ensure_future(future.aget(timeout=1.2)) for future in futures[:2]]
        cancelled = asyncio.ensure_future(futures[2].aget())
        await until_true(lambda: gateway.following)
        cancelled.cancel()
        ends = await asyncio.gather(*impatient, cancelled, return_exceptions=True)
        assert [type(end) for end in ends] == [TimeoutError, TimeoutError, asyncio.CancelledError]
        assert "goes on" in str(ends[0])
        gateway.succeed(futures[0].id, "there")
        return await patient

    assert asyncio.run(crowd(run)) == "there"
    until(lambda: not gateway.streams)


def test_a_stream_that_nobody_needs_any_more_is_closed(gateway, make, crowd):
    (future, other) = make(2)

    async def run():
        wait = asyncio.ensure_future(future.aget())
        await until_true(lambda: gateway.streams == 1)
        other_waits = asyncio.ensure_future(other.aget())
        await asyncio.sleep(0)
        wait.cancel()
        await until_true(lambda: [other.id] in gateway.following and gateway.streams == 1)
        gateway.succeed(other.id, 1)
        return await other_waits

    assert asyncio.run(crowd(run)) == 1
    until(lambda: not gateway.streams)


def test_shared_awaits_outlive_a_cut_and_a_restart(gateway, make, crowd):
    futures = make(3)

    async def run():
        waits = asyncio.gather(*futures)
        await until_true(lambda: gateway.streams)
        gateway.drops_waiting.append("POST")
        await until_true(lambda: not gateway.drops_waiting)
        gateway.stop()
        for future in futures:
            gateway.succeed(future.id, future.id)
        gateway.start()
        return await waits

    assert asyncio.run(crowd(run)) == [future.id for future in futures]


def test_a_shared_await_of_an_unknown_task_raises_and_the_others_go_on(gateway, client, make, crowd):
    (future,) = make(1)

    async def run():
        waits = asyncio.gather(future, Future.from_id("tsk_nobody", client=client), return_exceptions=True)
        await until_true(lambda: gateway.streams)
        gateway.succeed(future.id, 1)
        return await waits

    result, error = asyncio.run(crowd(run))
    assert result == 1
    assert isinstance(error, NotFoundError)
    assert "tsk_nobody" in str(error)


def test_an_error_of_the_stream_reaches_all_who_wait(gateway, make, crowd):
    futures = make(3)
    gateway.refused = "/v1/tasks/events"

    async def run():
        return await asyncio.gather(*futures, return_exceptions=True)

    errors = asyncio.run(crowd(run))
    assert [type(error) for error in errors] == [ConflictError] * 3
    assert len({id(error) for error in errors}) == 3, "tracebacks of one wait do not grow into another's"


def test_nothing_of_the_shared_awaits_outlives_their_loop(gateway, make):
    loop = asyncio.new_event_loop()

    async def run():
        futures = make(DIRECT_POLLS + 50)
        waits = asyncio.gather(*futures)
        await until_true(lambda: gateway.following)
        for future in futures:
            gateway.succeed(future.id, 1)
        await waits
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert not loop.run_until_complete(run())
    loop.close()
    reference = weakref.ref(loop)
    del loop
    gc.collect()
    assert reference() is None
