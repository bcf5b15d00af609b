"""Following tasks when the gateway refuses, and loops in threads that are closed from within."""

import asyncio
import gc
import threading
import time
import weakref

import pytest

from brinery import ConflictError, Future, InvalidRequestError, OverloadedError, UnavailableError, as_completed
from brinery.loop_thread import LoopThread
from brinery.waits import follow

ID = "tsk_1"
FINAL = ("message", {"id": ID, "status": "succeeded"})
FULL = OverloadedError("too many wait", retry_after_seconds=0.6)
AWAY = UnavailableError("Redis is away")
DEADLINE_SECONDS = 30.0


class _Gateway:
    """A client whose streams of tasks say what the test wants; the last of them is said again and again."""

    def __init__(self, *streams):
        self.streams = list(streams)
        self.asked_at = []

    async def task_events(self, _task_ids):
        self.asked_at.append(time.monotonic())
        said = self.streams.pop(0) if len(self.streams) > 1 else self.streams[0]
        yield "open", {}
        for each in said:
            await asyncio.sleep(0)
            yield ("error", each.to_json()) if isinstance(each, Exception) else each


def followed(gateway, left=(ID,), **options):
    """Follow to the end and return what was delivered."""
    delivered = []

    async def deliver(task_id, record):
        delivered.append((task_id, record))

    async def run():
        async with asyncio.timeout(DEADLINE_SECONDS):
            await follow(gateway, set(left), deliver, **options)

    asyncio.run(run())
    return delivered


def test_a_stream_that_ends_with_an_error_of_the_moment_is_opened_again():
    gateway = _Gateway([AWAY], [AWAY], [FINAL])
    assert followed(gateway) == [(ID, FINAL[1])]
    assert len(gateway.asked_at) == 3


def test_a_refusal_that_says_when_to_come_again_is_heeded():
    gateway = _Gateway([FULL], [FINAL])
    assert followed(gateway) == [(ID, FINAL[1])]
    first, second = gateway.asked_at
    assert second - first >= 0.6 * 0.5, "at least half of it: the rest spreads those who come again"


def test_refusals_are_asked_for_more_and_more_seldom_and_raised_when_the_patience_is_over():
    gateway = _Gateway([AWAY])
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="Redis is away"):
        followed(gateway, patience_seconds=1.5)
    assert time.monotonic() - began >= 1.5
    # Pauses of 0.2, 0.4, 0.8, 1.6 s, of which at least a half is waited: no more than 5 come within 1.5 s.
    assert 2 <= len(gateway.asked_at) <= 6


def test_the_patience_begins_anew_with_everything_that_is_heard():
    other = ("message", {"id": "tsk_2", "status": "failed"})
    gateway = _Gateway([FULL], [other, FULL], [AWAY], [FINAL])
    assert followed(gateway, (ID, "tsk_2"), patience_seconds=0.5) == [("tsk_2", other[1]), (ID, FINAL[1])]
    assert gateway.asked_at[2] - gateway.asked_at[0] > 0.5


def test_a_stream_that_was_open_longer_than_the_patience_may_end_with_an_error():
    class Slow(_Gateway):
        async def task_events(self, task_ids):
            async for event in super().task_events(task_ids):
                if event[0] == "error":
                    await asyncio.sleep(0.5)
                yield event

    assert followed(Slow([AWAY], [FINAL]), patience_seconds=0.4) == [(ID, FINAL[1])]


def test_what_is_no_error_of_the_moment_is_raised_at_once():
    gateway = _Gateway([ConflictError("never")])
    with pytest.raises(ConflictError, match="never"):
        followed(gateway)
    assert len(gateway.asked_at) == 1


# ------------------------------------------------------------------------------------------------ loops in threads
def test_a_loop_that_is_closed_from_its_own_thread_ends_what_it_runs_and_itself():
    """As by a garbage collection that happens there."""
    loop = LoopThread()
    ended = threading.Event()
    running = threading.Event()

    async def run():
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with loop:
        started = loop.start(run)
        assert running.wait(DEADLINE_SECONDS)
        loop.call(loop.close)
        loop._thread.join(DEADLINE_SECONDS)
        assert not loop._thread.is_alive()
    assert ended.is_set()
    assert started.cancelled()
    assert loop._loop.is_closed()


def test_an_abandoned_iterator_that_is_collected_in_its_loops_thread_leaves_no_thread(gateway, client):
    for number in range(2):
        task_id = f"tsk_{number}"
        gateway.tasks[task_id] = {"id": task_id, "endpoint": "f", "status": "queued", "error": None}
    gateway.succeed("tsk_0", 1)
    completed = as_completed([Future.from_id(f"tsk_{number}", client=client) for number in range(2)])
    assert next(completed).id == "tsk_0"
    (thread,) = [each for each in threading.enumerate() if each.name == "brinery-loop"]
    (loop,) = [each for each in gc.get_objects() if isinstance(each, LoopThread) and each._thread is thread]

    class Cycle:
        """Holds the iterator and itself, so that only a collection ends them."""

    cycle = Cycle()
    cycle.self, cycle.completed = cycle, completed
    gone = weakref.ref(cycle)
    gc.disable()
    try:
        del cycle, completed
        loop.call(gc.collect)
        thread.join(DEADLINE_SECONDS)
    finally:
        gc.enable()
    assert gone() is None
    assert not thread.is_alive()


# ------------------------------------------------------------------------------------------------- what is no task
@pytest.mark.parametrize("task_id", ["", "../keys", "tsk_", "tsk_a/b", "tsk_" + "a" * 61, None, 5, b"tsk_1"])
def test_what_is_no_task_id_is_refused_before_anything_is_sent(gateway, client, task_id):
    for use in (Future.from_id, client.task, client.cancel, client.task_attempts, client.requeue, client.drop):
        with pytest.raises(InvalidRequestError) as caught:
            use(task_id, client=client) if use == Future.from_id else use(task_id)
        assert str(caught.value).startswith(f"{task_id!r} is no task id")
    assert not gateway.requests


@pytest.mark.parametrize("timeout", ["3", True, [1]])
def test_a_timeout_that_is_no_number_is_refused(client, timeout):
    future = Future.from_id(ID, client=client)
    for use in (future.get, lambda timeout: asyncio.run(future.aget(timeout)), lambda t: as_completed([future], t)):
        with pytest.raises(TypeError, match="timeout is a number of seconds"):
            use(timeout)


def test_a_timeout_that_is_nan_is_refused(gateway, client):
    future = Future.from_id(ID, client=client)
    for use in (future.get, future.exception, lambda timeout: as_completed([future], timeout)):
        with pytest.raises(InvalidRequestError, match="timeout is nan"):
            use(float("nan"))
    assert not gateway.requests


@pytest.mark.parametrize("given", [["tsk_1"], "tsk_1", [None]])
def test_only_futures_are_completed(given):
    with pytest.raises(TypeError, match="as_completed takes futures, not"):
        as_completed(given)
