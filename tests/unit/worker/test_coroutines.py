"""Coroutines of user code on the one loop."""

import asyncio
import threading

import pytest

from brinery_worker.coroutines import Coroutines
from brinery_worker.slots import RequestStopped, Running


@pytest.fixture(scope="module")
def coroutines():
    return Coroutines()  # its thread is a daemon and ends with the process


def test_results_and_exceptions_come_back(coroutines):
    async def double(x):
        await asyncio.sleep(0)
        return x * 2

    async def fail():
        raise KeyError("x")

    assert coroutines.run(double(2), None) == 4
    with pytest.raises(KeyError):
        coroutines.run(fail(), None)


def test_all_run_on_one_loop_that_survives_an_exit_and_a_stop(coroutines):
    async def loop_id():
        return id(asyncio.get_running_loop())

    async def leave():
        raise SystemExit(1)

    async def stop_the_loop():
        asyncio.get_running_loop().stop()

    first = coroutines.run(loop_id(), None)
    with pytest.raises(SystemExit):
        coroutines.run(leave(), None)
    coroutines.run(stop_the_loop(), None)
    assert coroutines.run(loop_id(), None) == first


def test_a_stopped_request_cancels_its_coroutine(coroutines):
    started = threading.Event()
    running = Running(0, 1)
    ended = []

    async def forever():
        started.set()
        try:
            await asyncio.sleep(600)
        finally:
            ended.append(True)

    def stop():
        started.wait()
        running.stop("cancelled")

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(RequestStopped):
        coroutines.run(forever(), running)
    thread.join()
    assert ended == [True]


def test_a_coroutine_that_cancels_itself_is_a_failure_of_its_own(coroutines):
    async def give_up():
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        coroutines.run(give_up(), Running(0, 1))


def test_an_async_generator_is_read_step_by_step_and_closed(coroutines):
    made, closed = [], []

    async def count():
        try:
            for number in range(1000):
                made.append(number)
                yield number
        finally:
            closed.append(True)

    items = coroutines.iterate(count(), Running(0, 1))
    assert [next(items), next(items)] == [0, 1]
    items.close()
    assert closed == [True]
    assert len(made) <= 4


def test_an_async_generator_that_breaks_says_so_after_its_items(coroutines):
    async def break_off():
        yield 1
        raise ValueError("broken")

    items = coroutines.iterate(break_off(), None)
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)
