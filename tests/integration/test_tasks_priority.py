"""Priorities age: what waits at the head of its queue for long is moved up, on a real Valkey."""

import pytest
from task_records import ENDPOINT, ME, backlog, messages, submitted

from brinery_platform.transitions import new_token

pytestmark = pytest.mark.usefixtures("incarnations")


def waited(client, task_id, seconds):
    """Let a task have been published so long ago."""
    key = f"task:{task_id}"
    client.hset(key, "published_at", float(client.hget(key, "published_at")) - seconds)


def test_the_heads_of_a_queue_rise_one_step_behind_those_of_the_next(tasks, redis_client, objects):
    old, young = submitted(tasks, priority=0), submitted(tasks, priority=0)
    above = submitted(tasks, priority=1)
    waited(redis_client, old.id, 61)
    assert tasks.sweep(objects).risen == 1
    assert messages(redis_client, 0) == [young.id]
    assert messages(redis_client, 1) == [above.id, old.id]
    assert tasks.get(old.id).priority == 0, "what was asked for stays as it was"
    assert tasks.sweep(objects).risen == 0, "it begins to wait anew"


def test_what_waits_for_ever_reaches_the_top_and_is_claimed_from_there(tasks, redis_client, objects):
    task = submitted(tasks, priority=0, priority_age_seconds=5.0)
    for _ in range(9):
        waited(redis_client, task.id, 6)
        assert tasks.sweep(objects).risen == 1
    waited(redis_client, task.id, 6)
    assert tasks.sweep(objects).risen == 0
    assert messages(redis_client, 9) == [task.id]
    assert backlog(tasks).queued == 1
    assert tasks.claim(task.id, ME, new_token()).claim is not None
    assert backlog(tasks).queued == 0


def test_a_message_with_nothing_more_to_say_does_not_keep_those_behind_it_from_rising(tasks, redis_client, objects):
    gone, behind = submitted(tasks, priority=3), submitted(tasks, priority=3)
    tasks.cancel(gone.id)
    waited(redis_client, behind.id, 61)
    tasks.sweep(objects)
    assert messages(redis_client, 3) == []
    assert messages(redis_client, 4) == [behind.id]


def test_a_lost_message_of_a_risen_task_is_published_where_it_had_risen_to(tasks, redis_client, objects):
    task = submitted(tasks, priority=0)
    waited(redis_client, task.id, 61)
    tasks.sweep(objects)
    redis_client.delete(*redis_client.keys(f"endpoint.{ENDPOINT}*"))
    waited(redis_client, task.id, 3)
    assert tasks.sweep(objects).republished == 1
    assert messages(redis_client, 1) == [task.id]
