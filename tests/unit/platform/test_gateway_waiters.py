"""Who waits for tasks in a gateway: nothing is missed between two looks, and whoever leaves is forgotten."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import redis.asyncio

from brinery.errors import OverloadedError, UnavailableError
from brinery.spec import Task, TaskStatus
from brinery_platform.gateway import signals
from brinery_platform.gateway.auth import Caller
from brinery_platform.gateway.events import endpoint_events
from brinery_platform.gateway.metrics import HUNG_UP_STATUS
from brinery_platform.gateway.signals import Feed
from brinery_platform.gateway.task_events import task_changes
from brinery_platform.gateway.task_front import TaskRoute

ANN = Caller("key_1", "ann", admin=False)


def new_feed():
    """A feed that is only spoken to by the test; its client never connects."""
    return Feed(redis.asyncio.Redis(), "done")


def queued(task_id="tsk_1"):
    now = time.time()
    return Task(
        id=task_id,
        endpoint_id="end_1",
        owner="ann",
        status=TaskStatus.QUEUED,
        attempt=0,
        max_attempts=1,
        priority=4,
        timeout_seconds=1.0,
        result_ttl_seconds=1.0,
        created_at=now,
        expires_at=now + 60,
    )


def event(number, status):
    return f"{number}-0", {"status": status, "at": "1.5", "attempt": "1", "reason": "test"}


class EndsBetweenTwoLooks:
    """Records of one running task, which ends after its events were read and before its record is."""

    def __init__(self):
        self.kept = [event(1, "queued"), event(2, "running")]

    async def events(self, _task_id, after):
        return [each for each in self.kept if each[0] > after]

    async def standing(self, _task_id):
        if len(self.kept) == 2:
            self.kept.append(event(3, "succeeded"))
        return "ann", TaskStatus.SUCCEEDED


def test_a_stream_of_changes_ends_with_the_last_although_it_came_between_two_looks():
    async def main():
        changes = new_feed()
        gateway = SimpleNamespace(tasks=EndsBetweenTwoLooks(), changes=changes, closing=asyncio.Event())
        return [each async for each in task_changes("tsk_1", "2-0", gateway)]

    (only,) = asyncio.run(main())
    assert b"id: 3-0\n" in only
    assert b'"status":"succeeded"' in only


class Stream:
    """A Redis with one stream of an endpoint's events."""

    def __init__(self):
        self.kept = []

    def write(self, text):
        fields = {b"at": b"1.5", b"version": b"1", b"kind": b"log", b"text": text}
        self.kept.append((b"%d-0" % (len(self.kept) + 1), fields))

    async def xread(self, streams, **_options):
        ((key, after),) = streams.items()
        news = [entry for entry in self.kept if entry[0].decode() > after]
        return [[key, news]] if news else []


def test_done_comes_after_an_endpoints_last_event_although_that_came_between_two_looks():
    kept = Stream()
    kept.write(b"first")

    class Store:
        def version(self, _endpoint_id, _number):
            kept.write(b"last words")
            return SimpleNamespace(number=1, status="failed", reason="it broke")

        def versions(self, _endpoint_id):
            return []

    async def main():
        services = SimpleNamespace(aredis=kept, store=Store())
        gateway = SimpleNamespace(services=services, closing=asyncio.Event())
        return [each async for each in endpoint_events(gateway, "end_1", "0-0", follow=True, version=1)]

    first, last, done = asyncio.run(main())
    assert b'"text":"first"' in first
    assert b'"text":"last words"' in last
    assert done.startswith(b"event: done\n")


class Answered:
    """ASGI's `send`, and a `receive` of a client that leaves when it is told to."""

    def __init__(self):
        self.sent = []
        self.left = asyncio.Event()
        self._asked = False

    async def send(self, message):
        self.sent.append(message)

    async def receive(self):
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}


class Keys:
    def authenticate(self, _authorization):
        return ANN


class Records:
    def __init__(self):
        self.task = queued()
        self.reads = 0

    async def get(self, _task_id):
        self.reads += 1
        return self.task


def scope(query=b""):
    return {
        "path": "/v1/tasks/tsk_1",
        "query_string": query,
        "headers": [],
        "brinery.request_id": "req_1",
    }


def waiting_gateway():
    return SimpleNamespace(
        keys=Keys(),
        tasks=Records(),
        done=new_feed(),
        closing=asyncio.Event(),
        table=SimpleNamespace(by_id=lambda _endpoint_id: None),
    )


def test_a_client_that_leaves_is_forgotten_at_once():
    async def main():
        gateway, client = waiting_gateway(), Answered()
        route = TaskRoute(gateway)
        request = asyncio.create_task(route(scope(b"wait_seconds=60"), client.receive, client.send))
        while gateway.tasks.reads == 0:
            await asyncio.sleep(0)
        assert gateway.done.watched == 1
        client.left.set()
        async with asyncio.timeout(10):
            await request
        assert client.sent == []
        assert gateway.done.watched == 0

    asyncio.run(main())


def test_nobody_reads_a_record_again_before_something_is_said():
    async def main():
        gateway, client = waiting_gateway(), Answered()
        request = asyncio.create_task(TaskRoute(gateway)(scope(b"wait_seconds=60"), client.receive, client.send))
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert gateway.tasks.reads == 1
        gateway.done.wake_all()
        while gateway.tasks.reads < 2:
            await asyncio.sleep(0)
        gateway.closing.set()
        gateway.done.wake_all()
        async with asyncio.timeout(10):
            await request
        assert json.loads(client.sent[1]["body"])["status"] == "queued"
        assert client.sent[0]["status"] == 200 != HUNG_UP_STATUS

    asyncio.run(main())


def test_a_look_that_fails_is_made_again_and_nobody_who_waits_hears_of_it():
    class Flaky(Records):
        async def get(self, task_id):
            task = await super().get(task_id)
            if self.reads == 2:
                raise UnavailableError
            return task if self.reads < 3 else replace(task, status=TaskStatus.CANCELLED)

    async def main():
        gateway, client = waiting_gateway(), Answered()
        gateway.tasks = Flaky()
        request = asyncio.create_task(TaskRoute(gateway)(scope(b"wait_seconds=60"), client.receive, client.send))
        while gateway.tasks.reads < 1:
            await asyncio.sleep(0)
        gateway.done.wake_all()
        async with asyncio.timeout(30):
            await request
        assert json.loads(client.sent[1]["body"])["status"] == "cancelled"

    asyncio.run(main())


def test_streams_outlive_a_redis_that_is_away_for_a_moment():
    class Flaky(EndsBetweenTwoLooks):
        failures = 2

        async def events(self, task_id, after):
            if self.failures:
                self.failures -= 1
                raise UnavailableError
            return await super().events(task_id, after)

    async def main():
        gateway = SimpleNamespace(tasks=Flaky(), changes=new_feed(), closing=asyncio.Event())
        async with asyncio.timeout(30):
            return [each async for each in task_changes("tsk_1", "2-0", gateway)]

    (only,) = asyncio.run(main())
    assert b'"status":"succeeded"' in only


def test_a_waiter_is_told_which_of_its_tasks_are_worth_a_look():
    async def main():
        feed = new_feed()
        with feed.watch(["a", "b", "c"]) as mine, feed.watch(["b"]) as other:
            assert mine.take() == {"a", "b", "c"}
            assert other.take() == {"b"}
            await feed.said("b")
            await feed.said("unknown")
            assert await mine.wait(10)
            assert (mine.take(), other.take()) == ({"b"}, {"b"})
            assert mine.take() == set()
            feed.wake_all()
            assert mine.take() == {"a", "b", "c"}
        assert feed.watched == 0
        await feed.said("a")  # nobody waits any more

    asyncio.run(main())


def test_those_who_wait_for_many_tasks_are_bounded_together_and_those_who_wait_for_one_are_not():
    async def main():
        feed = new_feed()
        many = [f"tsk_{number}" for number in range(signals.MAX_WATCHED)]
        with feed.watch(many):
            with pytest.raises(OverloadedError) as refused, feed.watch(["a", "b"]):
                pass
            assert refused.value.context["retry_after_seconds"]
            with feed.watch(["a"]):
                pass
        with feed.watch(["a", "b"]):
            pass

    asyncio.run(main())
