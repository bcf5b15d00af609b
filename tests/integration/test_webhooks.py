"""Webhooks as they are sent for ever: real Redis, real receivers on loopback, and times made short."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

import pytest
import redis.asyncio
from task_records import ME, claimed, new_task
from webhook_receiver import BROKEN, LOOPBACK, OK, Receiver

from brinery.spec import TaskStatus
from brinery.webhooks import verify
from brinery_platform.async_tasks import AsyncTasks
from brinery_platform.gateway.receivers import LANES, SLOW_HOST_LANES, SLOW_OWNER_LANES
from brinery_platform.gateway.webhooks import Schedule, Webhooks
from brinery_platform.tasks import Tasks
from brinery_platform.transitions import new_token
from brinery_platform.webhooks import Sender, secret_text

KEY = b"k" * 32
QUICK = Schedule(first_seconds=0.05, most_seconds=0.1, give_up_seconds=60.0, lease_seconds=30.0)


async def view(task):
    return {"id": task.id, "status": task.status, "result": json.loads(task.result or b"null")}


class Gateway:
    """What a gateway does with webhooks, without the rest of it."""

    def __init__(self, url, *, schedule=QUICK, view=view, **sender):
        self.counted: list[str] = []
        self.client = redis.asyncio.Redis.from_url(url)
        self.tasks = AsyncTasks(self.client)
        self.webhooks = Webhooks(
            tasks=self.tasks,
            redis=self.client,
            view=view,
            secret=lambda _owner: KEY,
            sender=Sender(LOOPBACK, **sender),
            count=self.counted.append,
            schedule=schedule,
        )

    async def __aenter__(self):
        self._running = asyncio.create_task(self.webhooks.run())
        return self

    async def __aexit__(self, *_):
        self._running.cancel()
        await asyncio.wait([self._running])
        self.webhooks.close()
        await self.client.aclose()

    async def die(self):
        """End as a process does that is killed: nothing that it had begun is reported."""
        for one in list(self.webhooks._tries):
            one.cancel()
        await asyncio.sleep(0)
        self._running.cancel()
        await asyncio.wait([self._running])


def ended(tasks: Tasks, url: str, **changes):
    """Submit a task with a webhook and let it succeed."""
    tasks.register(ME)
    task = tasks.submit(new_task(webhook={"url": url, "username": "", "password": ""}, **changes)).task
    claim = tasks.claim(task.id, ME, new_token()).claim
    tasks.finish(claim, TaskStatus.SUCCEEDED, reason="done", result_type="application/json", result=b'{"x": 1}')
    return task.id


async def until(look, *, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)
    return found


def task_of(head):
    """Return whose end a message tells."""
    return head["webhook-id"].partition(".")[0]


def state_of(tasks, task_id):
    return tasks.get(task_id).webhook_state or {}


def test_the_end_of_a_task_is_told_once_signed_and_noted(tasks, redis_url, redis_client):
    async def scenario():
        async with Receiver() as receiver, Gateway(redis_url) as gateway:
            task_id = ended(tasks, receiver.url)
            await until(lambda: state_of(tasks, task_id).get("status") == "delivered")
            [(_, head, body)] = receiver.requests
            told = verify(body, head, secret_text(KEY))
            assert (told["type"], task_of(head)) == ("task.succeeded", task_id)
            assert told["data"] == {"id": task_id, "status": "succeeded", "result": {"x": 1}}
            state = state_of(tasks, task_id)
            assert abs(state.pop("delivered_at") - time.time()) < 60
            assert state == {
                "status": "delivered",
                "attempts": 1,
                "last_status": 200,
                "last_error": None,
                "next_at": None,
            }
            assert gateway.counted == ["delivered"]

    asyncio.run(scenario())
    assert redis_client.zcard("webhooks") == 0


def test_what_ended_before_a_gateway_was_there_is_told_when_one_comes(tasks, redis_url):
    async def scenario():
        async with Receiver() as receiver:
            found = {ended(tasks, receiver.url) for _ in range(2 * LANES)}
            async with Gateway(redis_url) as gateway:
                await until(lambda: len(gateway.counted) == len(found))
            assert {task_of(head) for _, head, _ in receiver.requests} == found
            assert len(receiver.requests) == len(found)

    asyncio.run(scenario())


def test_a_try_that_waits_for_its_time_is_made_although_nobody_says_so(tasks, redis_url, redis_client):
    async def scenario():
        async with Receiver() as receiver:
            task_id = ended(tasks, receiver.url)
            due_at = time.time() + 1.5
            redis_client.zadd("webhooks", {task_id: due_at})
            async with Gateway(redis_url) as gateway:
                await until(lambda: gateway.counted)
            assert time.time() >= due_at

    asyncio.run(scenario())


def test_an_end_wakes_a_gateway_that_sleeps(tasks, redis_url):
    async def scenario():
        async with Receiver() as receiver, Gateway(redis_url) as gateway:
            ended(tasks, receiver.url)
            await until(lambda: gateway.counted)
            await asyncio.sleep(0.2)  # it sleeps without an end now
            ended(tasks, receiver.url)
            await until(lambda: len(gateway.counted) == 2)

    asyncio.run(scenario())


def test_a_task_that_ends_once_more_is_told_once_more_under_another_id(tasks, redis_url):
    async def scenario():
        async with Receiver() as receiver, Gateway(redis_url) as gateway:
            tasks.register(ME)
            claim = claimed(tasks, webhook={"url": receiver.url})
            task_id = claim.task.id
            tasks.finish(claim, TaskStatus.FAILED, reason="broke")
            await until(lambda: gateway.counted == ["delivered"])
            assert tasks.requeue_dead(task_id) == "queued"
            assert tasks.cancel(task_id) == "cancelled"
            await until(lambda: gateway.counted == ["delivered"] * 2)
            first, second = [head["webhook-id"] for _, head, _ in receiver.requests]
            assert first != second
            assert {first.partition(".")[0], second.partition(".")[0]} == {task_id}

    asyncio.run(scenario())


def test_several_gateways_share_what_is_due_and_nothing_is_sent_twice(tasks, redis_url):
    async def scenario():
        async with Receiver() as receiver, Gateway(redis_url) as one, Gateway(redis_url) as other:
            found = {ended(tasks, receiver.url) for _ in range(40)}
            await until(lambda: len(one.counted) + len(other.counted) == len(found))
            assert {task_of(head) for _, head, _ in receiver.requests} == found
            assert len(receiver.requests) == len(found)

    asyncio.run(scenario())


def test_a_failed_try_is_seen_on_the_task_and_made_again(tasks, redis_url, redis_client):
    async def scenario():
        slow = Schedule(first_seconds=3600.0, most_seconds=3600.0, give_up_seconds=7200.0)
        async with Receiver([BROKEN, BROKEN, OK]) as receiver:
            async with Gateway(redis_url, schedule=slow):
                task_id = ended(tasks, receiver.url)
                await until(lambda: state_of(tasks, task_id))
                state = state_of(tasks, task_id)
                due_at = redis_client.zscore("webhooks", task_id)
                assert state.pop("next_at") == pytest.approx(due_at)
                assert 1700 < due_at - time.time() < 3700
                assert state == {
                    "status": "pending",
                    "attempts": 1,
                    "last_status": 500,
                    "last_error": "HTTP 500: broken",
                    "delivered_at": None,
                }
            redis_client.zadd("webhooks", {task_id: 1.0})  # as if that time had passed
            async with Gateway(redis_url) as gateway:
                await until(lambda: state_of(tasks, task_id)["status"] == "delivered")
            assert gateway.counted == ["retried", "delivered"]
            assert state_of(tasks, task_id)["attempts"] == 3
            first, *others = [head["webhook-id"] for _, head, _ in receiver.requests]
            assert (others, task_of({"webhook-id": first})) == ([first, first], task_id)

    asyncio.run(scenario())


def test_after_its_time_a_webhook_has_failed_and_one_that_came_too_late_was_still_tried_once(tasks, redis_url):
    async def scenario():
        over = Schedule(first_seconds=0.05, most_seconds=0.1, give_up_seconds=0.0)
        async with Receiver(BROKEN) as receiver:
            task_id = ended(tasks, receiver.url)
            async with Gateway(redis_url, schedule=over) as gateway:
                await until(lambda: gateway.counted)
            state = state_of(tasks, task_id)
            assert (state["status"], state["attempts"], state["next_at"]) == ("failed", 1, None)
            assert len(receiver.requests) == 1

    asyncio.run(scenario())


def test_a_deleted_endpoint_ends_its_webhooks(tasks, redis_url, redis_client):
    async def gone(_task):
        return None

    async def scenario():
        async with Receiver() as receiver, Gateway(redis_url, view=gone) as gateway:
            task_id = ended(tasks, receiver.url)
            await until(lambda: gateway.counted)
            await until(lambda: redis_client.zcard("webhooks") == 0)
            assert state_of(tasks, task_id)["status"] == "failed"
            assert "deleted" in state_of(tasks, task_id)["last_error"]
            assert receiver.connections == 0

    asyncio.run(scenario())


def test_a_try_that_breaks_by_a_defect_counts_and_goes_on(tasks, redis_url):
    calls = []

    async def breaks_once(task):
        calls.append(task.id)
        if len(calls) == 1:
            raise RuntimeError("a defect")
        return await view(task)

    async def scenario():
        async with Receiver() as receiver, Gateway(redis_url, view=breaks_once) as gateway:
            ended(tasks, receiver.url)
            await until(lambda: gateway.counted == ["retried", "delivered"])

    asyncio.run(scenario())


def test_records_that_are_gone_or_wait_again_are_not_told(tasks, redis_url, redis_client):
    async def scenario():
        async with Receiver() as receiver:
            forgotten, again, told = (ended(tasks, receiver.url) for _ in range(3))
            redis_client.delete(f"task:{forgotten}")
            redis_client.hset(f"task:{again}", "status", "queued")
            async with Gateway(redis_url) as gateway:
                await until(lambda: gateway.counted)
                await until(lambda: redis_client.zcard("webhooks") == 0)
            assert [task_of(head) for _, head, _ in receiver.requests] == [told]

    asyncio.run(scenario())


def test_a_try_of_a_gateway_that_died_is_made_by_another_after_its_lease(tasks, redis_url, redis_client):
    async def hangs(_writer):
        await asyncio.Event().wait()

    async def scenario():
        async with Receiver(b"", after=hangs) as silent, Receiver() as receiver:
            task_id = ended(tasks, silent.url)
            first = Gateway(redis_url)
            await first.__aenter__()
            await until(lambda: silent.requests)
            await first.die()
            left = redis_client.zscore("webhooks", task_id) - time.time()
            assert 15 < left < 31
            redis_client.hset(f"task:{task_id}", "webhook", json.dumps({"url": receiver.url}))
            async with Gateway(redis_url) as second:
                await until(lambda: redis_client.pubsub_numsub("webhooks")[0][1] == 1)
                assert not (await second.tasks.webhooks_take(30.0, 10)).tasks
                redis_client.zadd("webhooks", {task_id: 1.0})  # as if the lease were over
                redis_client.publish("webhooks", task_id)
                await until(lambda: state_of(tasks, task_id).get("status") == "delivered")
            assert task_of(receiver.requests[0][1]) == task_id
            await first.__aexit__()

    asyncio.run(scenario())


def test_a_report_after_the_lease_changes_nothing(tasks, redis_url, redis_client):
    async def scenario():
        client = redis.asyncio.Redis.from_url(redis_url)
        records = AsyncTasks(client)
        task_id = ended(tasks, "http://127.0.0.1:1/")
        early = await records.webhooks_take(0.0, 10)
        late = await records.webhooks_take(30.0, 10)
        assert [task.id for task in early.tasks] == [task.id for task in late.tasks] == [task_id]
        assert early.tasks[0].result == b'{"x": 1}'
        assert early.tasks[0].input is None
        assert (await records.webhook_report(task_id, early.lease, {"status": "late"}, None)).reason == "stale"
        assert state_of(tasks, task_id) == {}
        kept = await records.webhook_report(task_id, late.lease, {"status": "pending"}, late.at + 50)
        assert (kept.reason, 40 < kept.next_in_seconds <= 50) == ("kept", True)
        assert state_of(tasks, task_id) == {"status": "pending"}
        redis_client.zadd("webhooks", {task_id: 1.0})
        last = await records.webhooks_take(30.0, 10)
        tasks.cancel(task_id)
        redis_client.delete(f"task:{task_id}")
        assert (await records.webhook_report(task_id, last.lease, None, None)).reason == "done"
        assert not redis_client.exists(f"task:{task_id}")
        await client.aclose()

    asyncio.run(scenario())


def test_one_owner_with_a_silent_receiver_does_not_hold_up_another(tasks, redis_url):
    async def hangs(_writer):
        await asyncio.Event().wait()

    async def scenario():
        async with Receiver(b"", after=hangs) as silent, Receiver() as receiver:
            for _ in range(3 * LANES):
                ended(tasks, silent.url, owner="ann")
            async with Gateway(redis_url, whole_seconds=4.0) as gateway:
                await until(lambda: silent.connections == LANES)
                await until(lambda: gateway.counted)  # by now it is known to be slow
                task_id = ended(tasks, receiver.url, owner="bob")
                await until(lambda: state_of(tasks, task_id).get("status") == "delivered")
                assert silent.connections <= LANES + max(SLOW_HOST_LANES, SLOW_OWNER_LANES)

    asyncio.run(scenario())


def test_while_nothing_is_due_redis_is_asked_nothing(own_valkey):
    async def scenario():
        with redis.Redis.from_url(own_valkey.url) as client:
            tasks = Tasks(client)
            slow = Schedule(first_seconds=3600.0, most_seconds=3600.0, give_up_seconds=7200.0)
            async with Receiver([OK, BROKEN]) as receiver, Gateway(own_valkey.url, schedule=slow) as gateway:
                for _ in range(2):
                    ended(tasks, receiver.url)
                await until(lambda: len(gateway.counted) == 2)
                await asyncio.sleep(0.5)
                before = client.info("stats")["total_commands_processed"]
                await asyncio.sleep(3)
                assert client.info("stats")["total_commands_processed"] - before == 1  # the question itself

    asyncio.run(scenario())


def test_webhooks_go_on_after_redis_was_away(own_valkey):
    async def scenario():
        with redis.Redis.from_url(own_valkey.url) as client:
            tasks = Tasks(client)
            async with Receiver() as receiver, Gateway(own_valkey.url) as gateway:
                ended(tasks, receiver.url)
                await until(lambda: gateway.counted)
                own_valkey.kill()
                await asyncio.sleep(0.2)
                await asyncio.to_thread(own_valkey.start)
                with contextlib.suppress(redis.ConnectionError):
                    client.ping()
                ended(tasks, receiver.url)
                await until(lambda: len(gateway.counted) == 2)

    asyncio.run(scenario())


def test_a_delivery_is_reported_although_redis_is_away_when_it_ends(own_valkey):
    gate = asyncio.Event()

    async def scenario():
        async def waits(writer):
            await gate.wait()
            writer.write(OK)
            await writer.drain()

        with redis.Redis.from_url(own_valkey.url) as client:
            tasks = Tasks(client)
            async with Receiver(b"", after=waits) as receiver, Gateway(own_valkey.url) as gateway:
                task_id = ended(tasks, receiver.url)
                await until(lambda: receiver.requests)
                own_valkey.kill()
                gate.set()
                await until(lambda: gateway.counted)
                await asyncio.to_thread(own_valkey.start)
                with contextlib.suppress(redis.ConnectionError):
                    client.ping()
                await until(lambda: state_of(tasks, task_id).get("status") == "delivered")
                assert len(receiver.requests) == 1

    asyncio.run(scenario())
