"""Who gets a slot: the gateway's lanes, on a real event loop."""

from __future__ import annotations

import asyncio

import pytest

from brinery.errors import DeploymentError, NotFoundError, OverloadedError
from brinery.spec import MAX_HELD_REQUESTS, EndpointSpec, EndpointStatus
from brinery_platform.gateway.lanes import Lane
from brinery_platform.routes import EndpointRoute, WorkerRoute


def route(*worker_ids, concurrency=1):
    return EndpointRoute(
        id="end_1",
        owner="ann",
        status=EndpointStatus.READY,
        reason="",
        version=1,
        spec=EndpointSpec(name="iris", bundle_id="bun_1", concurrency=concurrency),
        workers=tuple(
            WorkerRoute(id=each, url=f"http://{each}:5005", control_url=f"http://{each}:5006") for each in worker_ids
        ),
    )


def in_a_loop(test):
    """Run an async test on a loop of its own."""

    def run():
        asyncio.run(test())

    run.__name__ = test.__name__
    return run


async def started(coroutine):
    """Return a task that has run up to where it waits."""
    task = asyncio.ensure_future(coroutine)
    await asyncio.sleep(0)
    return task


@in_a_loop
async def test_slots_are_given_to_the_least_busy_worker_up_to_its_concurrency():
    lane = Lane(route("wrk_1", "wrk_2", concurrency=2))
    taken = [lane.take() for _ in range(5)]
    assert [worker and worker.id for worker in taken] == ["wrk_1", "wrk_2", "wrk_1", "wrk_2", None]
    assert lane.in_flight == 4
    lane.release(taken[1])
    assert lane.take() is taken[1]


@in_a_loop
async def test_a_free_slot_goes_to_whoever_waits_longest():
    lane = Lane(route("wrk_1"))
    worker = lane.take()
    first, second = await started(lane.wait()), await started(lane.wait())
    lane.release(worker)
    assert lane.take() is None  # nobody passes those who wait
    assert await first is worker
    assert not second.done()
    lane.release(worker)
    assert await second is worker
    assert (lane.waiting, lane.in_flight) == (0, 1)


@in_a_loop
async def test_who_had_its_turn_at_a_busy_worker_is_next():
    lane = Lane(route("wrk_1"))
    worker = lane.take()
    late, again = await started(lane.wait()), await started(lane.wait(first=True))
    lane.release(worker)
    assert await again is worker
    assert not late.done()
    late.cancel()
    await asyncio.wait([late])


@in_a_loop
async def test_a_cancelled_wait_leaves_no_trace_and_loses_no_slot():
    lane = Lane(route("wrk_1"))
    worker = lane.take()
    gone, stays = await started(lane.wait()), await started(lane.wait())
    gone.cancel()
    await asyncio.wait([gone])
    assert lane.waiting == 1
    lane.release(worker)
    assert await stays is worker
    too_late = await started(lane.wait())
    lane.release(worker)  # the slot is given to it …
    too_late.cancel()  # … and it is cancelled before it can take it
    await asyncio.wait([too_late])
    assert too_late.cancelled()
    assert (lane.waiting, lane.in_flight) == (0, 0)
    assert lane.take() is worker


@in_a_loop
async def test_a_wait_that_is_cancelled_in_the_step_in_which_a_slot_frees_passes_it_on():
    lane = Lane(route("wrk_1"))
    worker = lane.take()
    gone, stays = await started(lane.wait()), await started(lane.wait())
    gone.cancel()
    lane.release(worker)
    await asyncio.wait([gone])
    assert await stays is worker
    assert (lane.waiting, lane.in_flight) == (0, 1)


@in_a_loop
async def test_a_new_table_wakes_as_many_as_it_has_slots():
    lane = Lane(route())
    waiting = [await started(lane.wait()) for _ in range(3)]
    lane.update(route("wrk_1", "wrk_2"))
    await asyncio.sleep(0)
    assert [task.done() for task in waiting] == [True, True, False]
    waiting[2].cancel()
    await asyncio.wait(waiting)


@in_a_loop
async def test_a_worker_keeps_its_count_over_a_new_table_unless_it_is_another_under_the_same_id():
    lane = Lane(route("wrk_1"))
    worker = lane.take()
    lane.update(route("wrk_1", "wrk_2"))
    assert lane.workers["wrk_1"] is worker
    moved = WorkerRoute(id="wrk_1", url="http://elsewhere:5005", control_url="http://elsewhere:5006")
    lane.update(EndpointRoute(**{**vars_of(route()), "workers": (moved,)}))
    assert lane.workers["wrk_1"].in_flight == 0
    lane.release(worker)
    assert lane.in_flight == 0


def vars_of(made):
    return {name: getattr(made, name) for name in ("id", "owner", "status", "reason", "version", "spec")}


@in_a_loop
async def test_a_paused_worker_gets_nothing_until_its_pause_is_over():
    lane = Lane(route("wrk_1"))
    lane.pause(lane.workers["wrk_1"], 0.02)
    assert lane.take() is None
    async with asyncio.timeout(10):
        assert (await lane.wait()).id == "wrk_1"


@in_a_loop
async def test_waiting_is_bounded():
    lane = Lane(route())
    waiting = [asyncio.ensure_future(lane.wait()) for _ in range(MAX_HELD_REQUESTS)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError) as refused:
        await lane.wait()
    assert refused.value.context["retry_after_seconds"] > 0
    lane.fail(lambda: DeploymentError("broken"))
    assert {type(task.exception()) for task in (await asyncio.wait(waiting))[0]} == {DeploymentError}
    assert lane.waiting == 0


@in_a_loop
async def test_a_closed_lane_takes_nobody_any_more():
    lane = Lane(route())
    lane.fail(lambda: NotFoundError("deleted"), closed=True)
    with pytest.raises(NotFoundError):
        await lane.wait()
