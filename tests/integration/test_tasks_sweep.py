"""What deaths and losses leave is repaired by the sweep, on a real Valkey."""

import time

import pytest
from task_records import ME, OTHER, claimed, let_die, messages, new_task, queue, submitted, trusts_the_leases

from brinery.spec import LEASE_SECONDS, TaskStatus
from brinery_platform.records import input_object, result_object
from brinery_platform.tasks import CANCEL
from brinery_platform.transitions import new_token
from servers import wait_for

pytestmark = pytest.mark.usefixtures("incarnations")


def test_sweep_requeues_what_dead_incarnations_ran_and_leaves_the_living_alone(tasks, redis_client, objects):
    lost, kept = claimed(tasks), claimed(tasks, OTHER)
    let_die(redis_client, ME)
    trusts_the_leases(redis_client)
    assert tasks.sweep(objects).requeued == 1
    assert tasks.get(lost.task.id).status is TaskStatus.QUEUED
    assert tasks.get(kept.task.id).status is TaskStatus.RUNNING
    assert redis_client.smembers("incarnations") == {OTHER.encode()}
    assert tasks.renew(ME) is False, "an incarnation whose tasks were given away never lives again"
    assert tasks.renew(OTHER) is True


def test_sweep_judges_nobody_right_after_a_gap(tasks, redis_client, objects):
    claim = claimed(tasks)
    let_die(redis_client, ME)
    redis_client.set("sweep:at", time.time() - LEASE_SECONDS)
    assert tasks.sweep(objects).requeued == 0
    assert tasks.sweep(objects).requeued == 0, "a whole lease to come back, not one sweep"
    redis_client.set("sweep:judge_after", time.time() - 1)
    assert tasks.sweep(objects).requeued == 1
    assert tasks.get(claim.task.id).status is TaskStatus.QUEUED


def test_the_known_death_of_a_forwarder_requeues_its_tasks_at_once(tasks):
    lost, kept = claimed(tasks), claimed(tasks, OTHER)
    assert tasks.incarnation_died("fwd_a") == 1
    assert tasks.get(lost.task.id).status is TaskStatus.QUEUED
    assert tasks.get(kept.task.id).status is TaskStatus.RUNNING


def test_a_task_whose_cancelling_holder_died_is_cancelled(tasks):
    claim = claimed(tasks)
    tasks.cancel(claim.task.id)
    tasks.incarnation_died("fwd_a")
    assert tasks.get(claim.task.id).status is TaskStatus.CANCELLED


def test_a_poisonous_task_stops_after_its_attempts(tasks):
    claim = claimed(tasks, max_attempts=1)
    tasks.incarnation_died("fwd_a")
    task = tasks.get(claim.task.id)
    assert (task.status, task.error["type"]) == (TaskStatus.FAILED, "worker")


def test_sweep_expires_what_waited_too_long_with_no_consumer_alive(tasks, objects):
    late = submitted(tasks, expires_at=time.time() - 1)
    running = claimed(tasks, expires_at=time.time() + 0.2)
    assert tasks.sweep(objects).expired == 1
    task = tasks.get(late.id)
    assert (task.status, task.error["type"]) == (TaskStatus.EXPIRED, "task_expired")
    time.sleep(0.3)
    tasks.sweep(objects)
    assert tasks.get(running.task.id).status is TaskStatus.RUNNING, "expiry bounds waiting, not running"


def age(client, *task_ids, seconds=3):
    """Let messages look older than they are."""
    for task_id in task_ids:
        client.hset(f"task:{task_id}", "published_at", time.time() - seconds)


def test_sweep_publishes_a_lost_message_again_when_the_queue_is_empty(tasks, redis_client, objects):
    task = submitted(tasks)
    redis_client.delete(queue())
    assert tasks.sweep(objects).republished == 0, "it may be on its way"
    age(redis_client, task.id)
    assert tasks.sweep(objects).republished == 1
    assert messages(redis_client) == [task.id]
    age(redis_client, task.id)
    assert tasks.sweep(objects).republished == 0, "it is there"


def test_sweep_publishes_only_what_is_ahead_of_the_head_of_its_queue(tasks, redis_client, objects):
    lost, head, behind = (submitted(tasks) for _ in range(3))
    urgent = submitted(tasks, priority=9)
    redis_client.rpop(queue())
    age(redis_client, lost.id, head.id, behind.id, urgent.id)
    assert tasks.sweep(objects).republished == 1
    assert messages(redis_client) == [head.id, behind.id, lost.id]


def test_sweep_waits_longer_before_each_further_copy(tasks, redis_client, objects):
    task = submitted(tasks)
    for expected in (1, 0):
        redis_client.delete(queue())
        age(redis_client, task.id)
        assert tasks.sweep(objects).republished == expected


def test_sweep_does_not_publish_what_a_living_forwarder_holds(tasks, redis_client, objects):
    task = submitted(tasks)
    redis_client.delete(queue())
    tasks.hold(task.id, ME)
    age(redis_client, task.id)
    assert tasks.sweep(objects).republished == 0
    let_die(redis_client, ME)
    assert tasks.sweep(objects).republished == 1


def test_sweep_forgets_a_task_with_its_objects_when_its_time_is_over(tasks, redis_client, objects):
    task = new_task(idempotency_key="k", result_ttl_seconds=0.0001)
    uploaded = new_task(result_ttl_seconds=0.0001, input=None, input_object="uploads/obj_1")
    object.__setattr__(task, "input", None)
    object.__setattr__(task, "input_object", input_object(task.id, "0"))
    for each in (task, uploaded):
        objects.put(each.input_object, b"in")
        tasks.submit(each)
        claim = tasks.claim(each.id, ME, new_token()).claim
        objects.put(result_object(each.id, 1), b"out")
        tasks.finish(claim, TaskStatus.SUCCEEDED, reason="", result_object=result_object(each.id, 1))
    time.sleep(0.01)
    assert tasks.sweep(objects).forgotten == 2
    assert tasks.get(task.id) is None
    assert not objects.exists(task.input_object)
    assert not objects.exists(result_object(task.id, 1))
    assert objects.exists("uploads/obj_1"), "what the user uploaded is the user's to delete"
    # What counts an endpoint's ends for its metrics stays as long as the endpoint.
    known = {"sequence", "incarnations", "sweep:at", "sweep:judge_after", "finished:end_1", queue()}
    left = {key.decode() for key in redis_client.scan_iter()} - known
    assert left == {f"incarnation:{ME}", f"incarnation:{OTHER}"}


def test_the_sweep_goes_on_over_ids_whose_records_are_gone(tasks, redis_client, objects):
    ghosts = [submitted(tasks).id for _ in range(3)]
    for index, ghost in zip(("deadlines", "due", "retention"), ghosts, strict=True):
        redis_client.delete(f"task:{ghost}")
        redis_client.zadd(index, {ghost: 1.0})
    late = submitted(tasks, expires_at=time.time() - 1)
    tasks.sweep(objects)
    assert tasks.get(late.id).status is TaskStatus.EXPIRED
    assert not [key for key in redis_client.keys("task:*") if key.decode().removeprefix("task:") in ghosts]
    for index in ("deadlines", "due", "retention", "webhooks"):
        assert not set(ghosts) & {member.decode() for member in redis_client.zrange(index, 0, -1)}


def test_a_cancel_under_a_lease_that_ran_out_tells_the_holder_all_the_same(tasks, redis_client):
    claim = claimed(tasks)
    let_die(redis_client, ME)
    with redis_client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(CANCEL)
        assert tasks.cancel(claim.task.id) == "cancelled"
        assert wait_for(lambda: pubsub.get_message(timeout=1))["data"] == claim.task.id.encode()
