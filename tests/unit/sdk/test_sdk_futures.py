"""Futures over real HTTP: they come back however the connection is treated, and say what became of the task."""

import asyncio
import threading

import pytest

from brinery import (
    Future,
    InvalidRequestError,
    NotFoundError,
    RemoteError,
    TaskCancelledError,
    TaskExpiredError,
    UpstreamTimeoutError,
)
from brinery.spec import CONTENT_PICKLE, TaskStatus

ID = "tsk_1"


def later(gateway, future, result, *, after):
    """Finish the task once `after` says that it is time."""

    def run():
        while not after():
            with gateway.changed:
                gateway.changed.wait(0.01)
        gateway.succeed(future.id, result)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def polls(gateway):
    return [request for request in gateway.requests if request[0] == "GET" and request[1].startswith("/v1/tasks/")]


def test_a_future_returns_the_result_and_asks_no_more_after_that(gateway, double):
    future = double.submit(21)
    assert future.get(timeout=5) == 42
    asked = len(gateway.requests)
    assert (future.get(), future.done(), future.status, future.exception()) == (42, True, TaskStatus.SUCCEEDED, None)
    assert len(gateway.requests) == asked


def test_a_future_is_picked_up_by_its_id(client, double):
    assert Future.from_id(double.submit(2).id, client=client).get() == 4


def test_an_open_task_is_a_timeout_and_can_be_waited_for_again(gateway, held):
    future = held.submit(1)
    for timeout in (0, 0.05):
        with pytest.raises(TimeoutError, match="goes on"):
            future.get(timeout=timeout)
    assert (future.done(), future.status) == (False, TaskStatus.QUEUED)
    gateway.succeed(future.id, "late")
    assert future.get(timeout=0) == "late"


def test_a_connection_cut_in_the_middle_of_a_wait_does_no_harm(gateway, held):
    future = held.submit(1)
    gateway.drops_waiting += ["GET"] * 2
    thread = later(gateway, future, "there", after=lambda: len(polls(gateway)) >= 3)
    assert future.get(timeout=20) == "there"
    thread.join()
    assert not gateway.drops_waiting


def test_a_gateway_that_restarts_while_somebody_waits_does_no_harm(gateway, held):
    future = held.submit(1)

    def restart():
        while not polls(gateway):
            with gateway.changed:
                gateway.changed.wait(0.01)
        gateway.stop()
        gateway.succeed(future.id, "there")
        gateway.start()

    thread = threading.Thread(target=restart)
    thread.start()
    assert future.get(timeout=20) == "there"
    thread.join()


def test_when_the_gateway_stays_away_the_wait_ends_in_time_and_says_so(gateway, held):
    future = held.submit(1)
    gateway.stop()
    with pytest.raises(TimeoutError, match="Nothing answers"):
        future.get(timeout=0.2)


@pytest.mark.parametrize("cut", ["drops", "drops_after"])
def test_a_submission_that_is_cut_off_makes_one_task(gateway, double, cut):
    getattr(gateway, cut).append("PUT")
    assert double.submit(4).get(timeout=5) == 8
    puts = [path for method, path, _ in gateway.requests if method == "PUT"]
    assert len(puts) == 2
    assert len(set(puts)) == len(gateway.tasks) == 1


def test_the_users_exception_is_raised_from_get(gateway, held):
    future = held.submit(1)
    error = RemoteError("lost", exception_type="LookupError", traceback="File x").to_json()["error"]
    gateway.finish(future.id, status="failed", error=error)
    with pytest.raises(RemoteError, match="LookupError: lost"):
        future.get()
    assert isinstance(future.exception(), RemoteError)


def test_a_task_that_failed_by_its_timeout_is_not_mistaken_for_a_wait_that_ended(gateway, held):
    future = held.submit(1)
    gateway.finish(future.id, status="failed", error=UpstreamTimeoutError("too slow").to_json()["error"])
    with pytest.raises(UpstreamTimeoutError, match="too slow"):
        future.get(timeout=5)


def test_cancelled_and_expired_tasks_say_so(gateway, held):
    cancelled, expired = held.submit(1), held.submit(2)
    assert cancelled.cancel()
    with pytest.raises(TaskCancelledError, match=cancelled.id):
        cancelled.get()
    gateway.finish(expired.id, status="expired")
    with pytest.raises(TaskExpiredError, match="max_workers"):
        expired.get()
    assert not expired.cancel()


def test_a_task_that_nobody_knows_is_told_at_once(client):
    with pytest.raises(NotFoundError):
        Future.from_id("tsk_nobody", client=client).get()


def test_a_result_that_is_not_inline_is_fetched(gateway, client, held):
    future = held.submit(1)
    gateway.results[future.id] = ("application/json", b"[1, 2]")
    gateway.finish(future.id, status="succeeded", result_type="application/json", result_inline=False)
    gateway.drops.append(f"GET /v1/tasks/{future.id}/result")
    assert future.get() == [1, 2]
    assert asyncio.run(Future.from_id(future.id, client=client).aget()) == [1, 2]


def test_a_pickled_result_is_opened_for_whoever_asks_for_it(gateway, client, held):
    import pickle

    future = held.submit(1)
    gateway.results[future.id] = (CONTENT_PICKLE, pickle.dumps({1, 2}))
    gateway.finish(future.id, status="succeeded", result_type=CONTENT_PICKLE, result_inline=False)
    with pytest.raises(InvalidRequestError, match="pickled=True"):
        future.get()
    assert Future.from_id(future.id, client=client, pickled=True).get() == {1, 2}


def test_an_awaited_future_has_its_timeout_and_survives_a_cut(gateway, held):
    async def run(future, timeout):
        return await future.aget(timeout=timeout)

    future = held.submit(1)
    with pytest.raises(TimeoutError, match="goes on"):
        asyncio.run(run(future, 0.05))
    gateway.drops_waiting.append("GET")
    thread = later(gateway, future, "there", after=lambda: not gateway.drops_waiting)
    assert asyncio.run(run(future, 20)) == "there"
    thread.join()
