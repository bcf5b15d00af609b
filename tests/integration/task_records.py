"""What the tests of tasks share: a task to submit, and waiting for its end."""

from __future__ import annotations

import asyncio
import json
import time

import redis.asyncio

from brinery.spec import Task, TaskStatus, new_id
from brinery_platform.async_tasks import AsyncTasks
from brinery_platform.tasks import Tasks
from brinery_platform.transitions import Backlog, new_token

ME = "fwd_a:host:1:0:a"
OTHER = "fwd_b:host:2:0:b"

ENDPOINT = "end_1"


def new_task(wanted: object = None, **changes) -> Task:
    now = time.time()
    values = {
        "id": new_id("tsk"),
        "endpoint_id": ENDPOINT,
        "owner": "ann",
        "status": TaskStatus.QUEUED,
        "attempt": 0,
        "max_attempts": 3,
        "priority": 4,
        "timeout_seconds": 30.0,
        "result_ttl_seconds": 600.0,
        "created_at": now,
        "expires_at": now + 600,
        "input": json.dumps(wanted if wanted is not None else {"echo": 1}).encode(),
    }
    return Task(**{**values, **changes})


def until_final(tasks: Tasks, task_id: str, *, objects=None, seconds: float = 30.0) -> Task:
    """Wait for a task's end; with `objects`, sweep meanwhile as the controller does."""
    deadline = time.monotonic() + seconds
    while True:
        task = tasks.get(task_id)
        if task.status.final:
            return task
        assert time.monotonic() < deadline, f"still {task.status} at attempt {task.attempt}"
        if objects is not None:
            tasks.sweep(objects)
        time.sleep(0.02)


def submitted(tasks, **changes):
    return tasks.submit(new_task(**changes)).task


def claimed(tasks, incarnation=ME, **changes):
    return tasks.claim(submitted(tasks, **changes).id, incarnation, new_token()).claim


def queue(priority=4):
    step = 9 - priority
    return f"endpoint.{ENDPOINT}" + (f"\x06\x16{step}" if step else "")


def messages(client, priority=4):
    """Ids on a queue, the one to be taken first in front."""
    return [json.loads(raw)["headers"]["id"] for raw in reversed(client.lrange(queue(priority), 0, -1))]


def backlog(tasks) -> Backlog:
    """How the endpoint's tasks stand, as the controller sees it."""
    return tasks.backlogs().get(ENDPOINT, Backlog(open=0, queued=0, oldest_queued_at=None))


def let_die(client, incarnation):
    client.delete(f"incarnation:{incarnation}")


def trusts_the_leases(client):
    """Let the sweep judge at once: as if it had swept all the time."""
    client.set("sweep:at", time.time())
    client.delete("sweep:judge_after")


def on_asyncio(url, work):
    """Run ``work(tasks)`` on a loop of its own."""

    async def main():
        async with redis.asyncio.Redis.from_url(url) as client:
            return await work(AsyncTasks(client))

    return asyncio.run(main())
