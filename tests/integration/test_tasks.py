"""Every transition of a task with every reason it can return, on a real Valkey."""

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from task_records import (
    ENDPOINT,
    ME,
    OTHER,
    backlog,
    claimed,
    let_die,
    messages,
    new_task,
    on_asyncio,
    queue,
    submitted,
)

from brinery.errors import (
    ConflictError,
    InvalidRequestError,
    OverloadedError,
    UnavailableError,
    UpstreamTimeoutError,
)
from brinery.spec import TaskStatus
from brinery_platform.tasks import CANCEL, DONE, Tasks
from brinery_platform.transitions import new_token
from servers import wait_for

TIMED_OUT = UpstreamTimeoutError("too slow")
pytestmark = pytest.mark.usefixtures("incarnations")


# ---------------------------------------------------------------------------------------------------------- submit
def test_submit_writes_the_record_and_the_message_at_once(tasks, redis_client):
    task = new_task(idempotency_key="k", input_type="application/json")
    submitted = tasks.submit(task)
    assert submitted.created
    assert tasks.get(task.id) == submitted.task
    times = {name: getattr(submitted.task, name) for name in ("created_at", "queued_at", "expires_at")}
    assert submitted.task == dataclasses.replace(task, **times)
    assert messages(redis_client) == [task.id]


def test_submit_takes_the_time_from_redis_and_only_the_patience_from_the_caller(tasks):
    an_hour_behind = time.time() - 3600
    task = submitted(tasks, created_at=an_hour_behind, expires_at=an_hour_behind + 60)
    assert abs(task.created_at - time.time()) < 30
    assert round(task.expires_at - task.created_at, 3) == 60


def test_submit_of_a_known_id_returns_that_task(tasks, redis_client):
    task = submitted(tasks)
    again = tasks.submit(task)
    assert (again.created, again.task.id) == (False, task.id)
    assert messages(redis_client) == [task.id]


def test_submit_of_a_known_idempotency_key_returns_that_task_for_this_owner_and_endpoint_only(tasks):
    first = submitted(tasks, idempotency_key="k")
    assert tasks.submit(new_task(idempotency_key="k")).task.id == first.id
    assert tasks.submit(new_task(idempotency_key="k", owner="bob")).created
    assert tasks.submit(new_task(idempotency_key="k", endpoint_id="end_2")).created


def test_submit_never_shows_the_task_of_another_owner_under_the_same_id(tasks):
    task = submitted(tasks)
    with pytest.raises(ConflictError):
        tasks.submit(new_task(id=task.id, owner="bob"))


def test_submit_above_max_queued_is_refused_until_a_task_is_final(tasks):
    first = tasks.submit(new_task(), max_queued=1).task
    with pytest.raises(OverloadedError) as refused:
        tasks.submit(new_task(), max_queued=1)
    assert refused.value.context["retry_after_seconds"] > 0
    tasks.cancel(first.id)
    assert tasks.submit(new_task(), max_queued=1).created


@pytest.mark.parametrize("bad", ["", "a b", 'x"', "%1", "@ID@", "a" * 65])
def test_submit_refuses_ids_that_could_break_a_message(tasks, bad):
    with pytest.raises(InvalidRequestError):
        tasks.submit(new_task(id=bad))


def test_of_many_submissions_with_one_key_exactly_one_is_created(tasks):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: tasks.submit(new_task(idempotency_key="k")), range(64)))
    assert sum(each.created for each in found) == 1
    assert len({each.task.id for each in found}) == 1


# ----------------------------------------------------------------------------------------------------------- claim
def test_claim_begins_an_attempt(tasks):
    claim = claimed(tasks)
    assert (claim.task.status, claim.task.attempt, claim.task.incarnation) == (TaskStatus.RUNNING, 1, ME)
    assert claim.task.started_at
    assert backlog(tasks).queued == 0
    assert backlog(tasks).open == 1


def test_claim_says_why_a_message_is_to_be_dropped(tasks):
    assert tasks.claim("tsk_unknown", ME, new_token()).reason == "gone"
    running = claimed(tasks)
    assert tasks.claim(running.task.id, OTHER, new_token()).reason == "running"
    tasks.finish(running, TaskStatus.SUCCEEDED, reason="", result=b"1")
    assert tasks.claim(running.task.id, ME, new_token()).reason == "final"
    delayed = claimed(tasks)
    tasks.requeue(delayed, reason="", charge="full", error=TIMED_OUT, delay_seconds=60)
    assert tasks.claim(delayed.task.id, ME, new_token()).reason == "delayed"


def test_claim_by_an_incarnation_without_a_lease_is_refused(tasks, redis_client):
    task = submitted(tasks)
    assert tasks.claim(task.id, "fwd_x:unknown", new_token()).reason == "unregistered"
    let_die(redis_client, ME)
    assert tasks.claim(task.id, ME, new_token()).reason == "unregistered"
    assert tasks.get(task.id).attempt == 0


def test_claim_repeated_because_its_reply_was_lost_is_the_same_attempt(tasks):
    task, token = submitted(tasks), new_token()
    first, second = (tasks.claim(task.id, ME, token).claim for _ in range(2))
    assert first == second


def test_claim_of_an_expired_task_expires_it(tasks):
    task = submitted(tasks, expires_at=time.time() - 1)
    assert tasks.claim(task.id, ME, new_token()).reason == "final"
    assert tasks.get(task.id).status is TaskStatus.EXPIRED


def test_claim_under_a_dead_lease_is_a_new_attempt_until_none_is_left(tasks, redis_client):
    first = claimed(tasks, max_attempts=2)
    let_die(redis_client, ME)
    second = tasks.claim(first.task.id, OTHER, new_token()).claim
    assert second.task.attempt == 2
    let_die(redis_client, OTHER)
    tasks.register("fwd_c:host")
    assert tasks.claim(first.task.id, "fwd_c:host", new_token()).reason == "final"
    assert tasks.get(first.task.id).status is TaskStatus.FAILED
    assert tasks.finish(second, TaskStatus.SUCCEEDED, reason="", result=b"1") == "stale"


def test_of_many_claims_of_one_task_exactly_one_gets_it(tasks):
    task = submitted(tasks)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: tasks.claim(task.id, ME, new_token()), range(64)))
    assert [each.reason for each in found].count("claimed") == 1
    assert tasks.get(task.id).attempt == 1


# ---------------------------------------------------------------------------------------------------------- finish
def test_finish_ends_a_task_and_wakes_its_waiters(tasks, redis_client):
    claim = claimed(tasks)
    with redis_client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(DONE)
        outcome = tasks.finish(claim, TaskStatus.SUCCEEDED, reason="answered", result=b"1", result_type="x/y")
        heard = wait_for(lambda: pubsub.get_message(timeout=1))
    assert (outcome, heard["data"]) == ("finished", claim.task.id.encode())
    task = tasks.get(claim.task.id)
    assert (task.status, task.result, task.result_type) == (TaskStatus.SUCCEEDED, b"1", "x/y")
    assert backlog(tasks).open == 0
    events = [fields[b"status"] for _, fields in redis_client.xrange(f"events:{task.id}")]
    assert events == [b"queued", b"running", b"succeeded"]


def test_finish_of_an_attempt_that_was_given_up_changes_nothing(tasks, redis_client):
    late = claimed(tasks)
    let_die(redis_client, ME)
    claim = tasks.claim(late.task.id, OTHER, new_token()).claim
    assert tasks.finish(late, TaskStatus.SUCCEEDED, reason="", result=b"late") == "stale"
    assert tasks.get(claim.task.id).status is TaskStatus.RUNNING
    assert tasks.finish(claim, TaskStatus.SUCCEEDED, reason="", result=b"good") == "finished"
    assert tasks.finish(claim, TaskStatus.FAILED, reason="", error={}) == "stale"
    assert tasks.get(claim.task.id).result == b"good"


def test_finish_of_a_task_that_was_forgotten_says_so(tasks, redis_client):
    claim = claimed(tasks)
    redis_client.delete(f"task:{claim.task.id}")
    assert tasks.finish(claim, TaskStatus.SUCCEEDED, reason="") == "gone"


# --------------------------------------------------------------------------------------------------------- requeue
def test_a_charged_requeue_waits_for_its_delay_and_counts(tasks, redis_client, objects):
    claim = claimed(tasks)
    redis_client.delete(queue())
    assert tasks.requeue(claim, reason="crash", charge="full", error=TIMED_OUT, delay_seconds=0.05) == "queued"
    assert messages(redis_client) == []
    assert backlog(tasks).queued == 0
    wait_for(lambda: tasks.sweep(objects).due == 1)
    assert messages(redis_client) == [claim.task.id]
    assert tasks.claim(claim.task.id, ME, new_token()).claim.task.attempt == 2


def test_the_back_off_doubles_with_each_attempt_and_is_bounded(tasks, redis_client):
    waits = []
    for attempt in (1, 4, 40):
        claim = claimed(tasks, max_attempts=100)
        redis_client.hset(f"task:{claim.task.id}", "attempt", attempt)
        object.__setattr__(claim.task, "attempt", attempt)
        before = time.time()
        tasks.requeue(claim, reason="", charge="full", error=TIMED_OUT)
        waits.append(tasks.get(claim.task.id).not_before - before)
    assert 0.4 < waits[0] < 2 < 3.9 < waits[1] < 9 < 149 < waits[2] < 301


def test_an_uncharged_requeue_gives_the_attempt_back(tasks, redis_client):
    claim = claimed(tasks, max_attempts=1)
    redis_client.delete(queue())
    assert tasks.requeue(claim, reason="busy", charge="none", error=TIMED_OUT, delay_seconds=0) == "queued"
    assert tasks.get(claim.task.id).attempt == 0
    assert messages(redis_client) == [claim.task.id]
    again = tasks.claim(claim.task.id, ME, new_token()).claim
    assert again.task.attempt == 1
    assert tasks.finish(claim, TaskStatus.SUCCEEDED, reason="") == "stale", "the same attempt number, another claim"


def test_out_of_attempts_is_a_failure_and_a_dead_letter(tasks, redis_client):
    claim = claimed(tasks, max_attempts=1)
    assert tasks.requeue(claim, reason="slow", charge="full", error=TIMED_OUT) == "failed"
    task = tasks.get(claim.task.id)
    assert (task.status, task.error["type"]) == (TaskStatus.FAILED, "upstream_timeout")
    assert redis_client.zrange(f"dead:{ENDPOINT}", 0, -1) == [task.id.encode()]
    assert tasks.requeue(claim, reason="slow", charge="full", error=TIMED_OUT) == "stale"


def test_a_dead_letter_starts_again_with_all_its_attempts(tasks, redis_client):
    claim = claimed(tasks, max_attempts=1)
    assert tasks.requeue_dead(claim.task.id) == "not_failed"
    tasks.requeue(claim, reason="", charge="full", error=TIMED_OUT)
    redis_client.delete(queue())
    assert tasks.requeue_dead(claim.task.id) == "queued"
    assert tasks.requeue_dead("tsk_unknown") == "gone"
    task = tasks.get(claim.task.id)
    assert (task.status, task.attempt, task.max_attempts, task.error) == (TaskStatus.QUEUED, 1, 2, None)
    assert messages(redis_client) == [task.id]
    assert not redis_client.exists(f"dead:{ENDPOINT}")
    assert backlog(tasks).open == 1


# ---------------------------------------------------------------------------------------------------------- cancel
def test_cancel_ends_what_is_queued_and_asks_the_holder_of_what_runs(tasks, redis_client):
    queued, running = submitted(tasks), claimed(tasks)
    with redis_client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(CANCEL)
        assert tasks.cancel(queued.id) == "cancelled"
        assert tasks.cancel(running.task.id) == "requested"
        assert wait_for(lambda: pubsub.get_message(timeout=1))["data"] == running.task.id.encode()
    assert tasks.get(queued.id).status is TaskStatus.CANCELLED
    assert tasks.cancel(queued.id) == "final"
    assert tasks.cancel("tsk_unknown") == "gone"
    assert tasks.cancel_requested([queued.id, running.task.id]) == [running.task.id]
    assert tasks.requeue(running, reason="", charge="none", error=TIMED_OUT) == "cancelled"


def test_cancel_of_a_task_whose_holder_is_dead_ends_it_at_once(tasks, redis_client):
    running = claimed(tasks)
    let_die(redis_client, ME)
    assert tasks.cancel(running.task.id) == "cancelled"


# ---------------------------------------------------------------------------------------------------- hold, release
def test_a_held_task_stays_queued_and_can_be_given_back_to_the_head(tasks, redis_client):
    first, second = submitted(tasks), submitted(tasks)
    redis_client.rpop(queue())
    assert tasks.hold(first.id, ME) == "held"
    assert tasks.hold(first.id, OTHER) == "duplicate"
    assert tasks.get(first.id).status is TaskStatus.QUEUED
    assert backlog(tasks).queued == 2
    tasks.release(first.id, ME)
    assert messages(redis_client) == [first.id, second.id]
    tasks.release(first.id, ME)
    assert messages(redis_client) == [first.id, second.id], "only what is held can be given back"


def test_hold_says_why_a_message_is_to_be_dropped(tasks):
    task = submitted(tasks)
    tasks.cancel(task.id)
    assert tasks.hold(task.id, ME) == "final"
    assert tasks.hold("tsk_unknown", ME) == "gone"
    claim = claimed(tasks)
    tasks.requeue(claim, reason="", charge="full", error=TIMED_OUT, delay_seconds=60)
    assert tasks.hold(claim.task.id, ME) == "delayed"


# -------------------------------------------------------------------------------------------------- counting, deleting
def test_the_backlog_counts_what_is_open_and_what_waits(tasks):
    assert backlog(tasks).oldest_queued_at is None
    before = time.time()
    claimed(tasks)
    submitted(tasks)
    submitted(tasks, priority=9)
    found = backlog(tasks)
    assert (found.open, found.queued) == (3, 2)
    assert abs(backlog(tasks).oldest_queued_at - before) < 5
    submitted(tasks, endpoint_id="end_2")
    assert {name: found.open for name, found in tasks.backlogs().items()} == {ENDPOINT: 3, "end_2": 1}


def test_forgetting_an_endpoint_cancels_its_tasks_and_removes_its_queues(tasks, redis_client):
    queued = [submitted(tasks, priority=number % 10).id for number in range(450)]
    running = claimed(tasks)
    elsewhere = submitted(tasks, endpoint_id="end_2")
    assert tasks.forget_endpoint(ENDPOINT) == 1
    assert {tasks.get(task_id).status for task_id in queued} == {TaskStatus.CANCELLED}
    tasks.incarnation_died("fwd_a")
    assert tasks.forget_endpoint(ENDPOINT) == 0
    assert tasks.get(running.task.id).status is TaskStatus.CANCELLED
    assert not redis_client.keys(f"endpoint.{ENDPOINT}*")
    assert tasks.get(elsewhere.id).status is TaskStatus.QUEUED


def test_the_gateway_s_half_does_the_same_on_asyncio(redis_url, redis_client):
    async def work(mine):
        task = (await mine.submit(new_task(idempotency_key="k"))).task
        again = await mine.submit(new_task(idempotency_key="k"))
        assert (again.created, again.task.id) == (False, task.id)
        assert (await mine.get(task.id)).status is TaskStatus.QUEUED
        assert await mine.get("tsk_unknown") is None
        assert await mine.cancel(task.id) == "cancelled"
        assert await mine.requeue_dead(task.id) == "not_failed"

    redis_client.script_flush()  # the scripts find their way to a server that knows none of them
    on_asyncio(redis_url, work)


# --------------------------------------------------------------------------------------------------- Redis restarts
def test_what_was_accepted_survives_a_killed_redis(own_valkey):
    with redis.Redis.from_url(own_valkey.url) as client:
        tasks = Tasks(client)
        tasks.register(ME)
        accepted: list[str] = []
        refused = threading.Event()

        def submit() -> None:
            while not refused.is_set() and len(accepted) < 100_000:
                try:
                    accepted.append(tasks.submit(new_task()).task.id)
                except UnavailableError:
                    refused.set()

        submitting = threading.Thread(target=submit)
        submitting.start()
        wait_for(lambda: len(accepted) > 50)
        own_valkey.kill()
        submitting.join()
        own_valkey.start()
        assert all(tasks.get(task_id).status is TaskStatus.QUEUED for task_id in accepted)
        assert set(accepted) <= set(messages(client))
