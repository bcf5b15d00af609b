"""Two submissions of one id with large inputs at once: whatever becomes of them, the task keeps its own."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest
import redis.asyncio

from brinery.errors import ConflictError, OverloadedError
from brinery.spec import CONTENT_PICKLE, INLINE_BYTES, EndpointSpec, EndpointStatus, new_id
from brinery_platform.async_tasks import AsyncTasks
from brinery_platform.gateway.lanes import Lane
from brinery_platform.gateway.submit import submit_task
from brinery_platform.objects import FolderObjects
from brinery_platform.routes import EndpointRoute

PICKLED = {b"content-type": CONTENT_PICKLE.encode()}
ONE, OTHER = b"1" * (INLINE_BYTES + 1), b"2" * (INLINE_BYTES + 1)
DEADLINE_SECONDS = 30


class Objects(FolderObjects):
    """Objects in a folder; the test says how many are written at once, and when one is deleted."""

    def __init__(self, root, *, at_once=1):
        super().__init__(root)
        self._written = threading.Barrier(at_once)
        self.deleting, self.may_delete = threading.Event(), threading.Event()

    def put(self, key, data):
        size = super().put(key, data)
        self._written.wait(DEADLINE_SECONDS)
        return size

    def delete(self, key):
        self.deleting.set()
        assert self.may_delete.wait(DEADLINE_SECONDS)
        super().delete(key)


def racing(valkey, objects, race, **spec):
    """Run ``race(submit, tasks)`` against a real Redis."""
    name = new_id("end")
    route = EndpointRoute(
        id=name,
        owner="ann",
        status=EndpointStatus.READY,
        reason="",
        version=1,
        spec=EndpointSpec(name="e", bundle_id="bun_1", **spec),
        workers=(),
        request_schema=None,
    )

    async def run():
        async with redis.asyncio.Redis.from_url(valkey.connection_url) as client:
            tasks, lane = AsyncTasks(client), Lane(route)
            gateway = SimpleNamespace(tasks=tasks, services=SimpleNamespace(objects=objects))

            async def submit(body, task_id):
                return await submit_task(gateway, lane, PICKLED, body, task_id=task_id)

            async with asyncio.timeout(2 * DEADLINE_SECONDS):
                return await race(submit, tasks)

    return asyncio.run(run())


def inputs(root, task_id):
    return [path.read_bytes() for path in (root / "inputs").glob(f"{task_id}.*")]


def test_of_two_equal_ones_both_are_answered_with_the_one_task(valkey, tmp_path):
    objects, task_id = Objects(tmp_path, at_once=2), new_id("tsk")
    objects.may_delete.set()

    async def race(submit, tasks):
        first, second = await asyncio.gather(submit(ONE, task_id), submit(ONE, task_id))
        return first, second, await tasks.get(task_id)

    first, second, kept = racing(valkey, objects, race)
    assert first == second
    assert objects.get(kept.input_object) == ONE
    assert inputs(tmp_path, task_id) == [ONE]


def test_of_two_different_ones_the_later_is_refused_and_the_earlier_keeps_its_input(valkey, tmp_path):
    objects, task_id = Objects(tmp_path, at_once=2), new_id("tsk")
    objects.may_delete.set()

    async def race(submit, tasks):
        answers = await asyncio.gather(submit(ONE, task_id), submit(OTHER, task_id), return_exceptions=True)
        return answers, await tasks.get(task_id)

    answers, kept = racing(valkey, objects, race)
    (refused,) = [number for number, answer in enumerate(answers) if isinstance(answer, ConflictError)]
    accepted = (OTHER, ONE)[refused]
    assert answers[1 - refused].id == task_id
    assert objects.get(kept.input_object) == accepted
    assert inputs(tmp_path, task_id) == [accepted]


@pytest.mark.parametrize("body", [ONE, OTHER])
def test_one_that_a_full_queue_refused_does_not_take_the_input_of_its_accepted_twin(valkey, tmp_path, body):
    objects, task_id = Objects(tmp_path), new_id("tsk")

    async def race(submit, tasks):
        first = await submit(b"small", new_id("tsk"))
        refused = asyncio.ensure_future(submit(body, task_id))
        assert await asyncio.to_thread(objects.deleting.wait, DEADLINE_SECONDS)  # it was told, and tidies up soon
        await tasks.cancel(first.id)
        accepted = await submit(ONE, task_id)
        objects.may_delete.set()
        with pytest.raises(OverloadedError):
            await refused
        return accepted, await tasks.get(task_id)

    accepted, kept = racing(valkey, objects, race, max_queued=1)
    assert accepted == kept
    assert objects.get(kept.input_object) == ONE
    assert inputs(tmp_path, task_id) == [ONE]
