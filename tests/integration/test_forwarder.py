"""A real forwarder process between a real Valkey and a worker of the standard library; killed, frozen, cut off."""

import contextlib
import json
import signal
import time

import orjson
import pytest
import redis
from celery.result import AsyncResult
from task_records import ENDPOINT, messages, new_task, until_final
from worker_stub import worker_stub, write_route

from brinery.errors import RemoteError
from brinery.spec import TaskStatus
from brinery_platform.broker import make_app, queue_name
from brinery_platform.records import celery_object, input_object
from brinery_platform.routes import DEMAND, LOAD, ROUTING
from brinery_platform.settings import Settings
from brinery_platform.tasks import Tasks
from servers import wait_for


@pytest.fixture
def stub():
    with worker_stub() as stub:
        yield stub


@pytest.fixture
def forwarder(start_forwarder, redis_client, redis_url, stub):
    """One forwarder with one worker of four slots."""
    write_route(redis_client, ENDPOINT, stub.url)
    return start_forwarder(ENDPOINT, redis_url=redis_url)


def run(tasks, wanted, *, objects=None, **changes):
    """Submit a task and wait for its end."""
    task = tasks.submit(new_task(wanted, **changes)).task
    return until_final(tasks, task.id, objects=objects)


def until_running(tasks, task_id):
    wait_for(lambda: tasks.get(task_id).status is TaskStatus.RUNNING)


def trusts_the_leases(client):
    client.set("sweep:at", time.time())
    client.delete("sweep:judge_after")


# -------------------------------------------------------------------------------------------------------- outcomes
@pytest.mark.usefixtures("forwarder")
def test_a_task_is_run_and_its_result_is_read_from_the_record_and_by_celery(tasks, stub, redis_url, tmp_path):
    task = run(tasks, {"echo": {"sum": 3}})
    assert (task.status, task.attempt, task.result_type) == (TaskStatus.SUCCEEDED, 1, "application/json")
    assert json.loads(task.result) == {"sum": 3}
    (call,) = stub.calls
    assert call["X-Brinery-Request-Id"] == f"{task.id}.1"
    assert (call["X-Brinery-Task-Id"], call["X-Brinery-Attempt"]) == (task.id, "1")
    assert (call["X-Brinery-Timeout-Seconds"], call["Content-Type"]) == ("30", "application/json")
    app = make_app(Settings(redis_url=redis_url, objects_url=f"file://{tmp_path}/objects", home=tmp_path))
    assert AsyncResult(task.id, app=app).get(timeout=10) == {"sum": 3}
    app.close()


@pytest.mark.usefixtures("forwarder")
def test_the_user_s_error_ends_the_task_and_is_its_own(tasks, redis_url, tmp_path):
    task = run(tasks, {"raise": "no good"})
    assert (task.status, task.attempt) == (TaskStatus.FAILED, 1)
    assert task.error["message"] == "no good"
    assert task.error["context"]["exception_type"] == "ValueError"
    app = make_app(Settings(redis_url=redis_url, objects_url=f"file://{tmp_path}/objects", home=tmp_path))
    with pytest.raises(RemoteError, match="no good"):
        AsyncResult(task.id, app=app).get(timeout=10)
    app.close()


@pytest.mark.usefixtures("forwarder")
def test_large_inputs_and_results_lie_in_the_object_store(tasks, objects):
    task = new_task(input=None)
    object.__setattr__(task, "input_object", input_object(task.id, "0"))
    objects.put(task.input_object, json.dumps({"size": 3_000_000, "padding": "x" * 200_000}).encode())
    task = until_final(tasks, tasks.submit(task).task.id)
    assert task.status is TaskStatus.SUCCEEDED
    assert task.result is None
    assert objects.get(task.result_object) == b'"' + b"x" * 3_000_000 + b'"'


@pytest.mark.usefixtures("forwarder")
def test_a_missing_input_fails_the_task(tasks):
    task = run(tasks, None, input=None, input_object="inputs/nothing")
    assert task.error["type"] == "not_found"


@pytest.mark.usefixtures("forwarder")
def test_a_crash_is_tried_again_and_counts(tasks, stub, objects):
    task = run(tasks, {"crash": 1, "echo": 2}, objects=objects)
    assert (task.status, task.attempt, task.result) == (TaskStatus.SUCCEEDED, 2, b"2")
    assert len(stub.calls) == 2


@pytest.mark.usefixtures("forwarder")
@pytest.mark.parametrize("size", [1000, 3_000_000])
def test_a_result_that_is_cut_off_is_no_result(tasks, stub, objects, size):
    task = run(tasks, {"cut": 1, "size": size}, objects=objects)
    assert (task.status, task.attempt, len(stub.calls)) == (TaskStatus.SUCCEEDED, 2, 2)
    whole = task.result if task.result_object is None else objects.get(task.result_object)
    assert whole == b'"' + b"x" * size + b'"'


@pytest.mark.usefixtures("forwarder")
@pytest.mark.parametrize("said", ["", "{", "1}, {"])
def test_what_is_called_json_and_is_none_is_kept_as_bytes(tasks, said):
    task = run(tasks, {"says": said})
    assert (task.status, task.result) == (TaskStatus.SUCCEEDED, said.encode())
    assert task.result_type == "application/octet-stream"


@pytest.mark.usefixtures("forwarder")
def test_a_task_that_always_crashes_becomes_a_dead_letter(tasks, objects, redis_client):
    task = run(tasks, {"crash": 9}, objects=objects, max_attempts=2)
    assert (task.status, task.error["type"]) == (TaskStatus.FAILED, "worker")
    assert redis_client.zrange(f"dead:{ENDPOINT}", 0, -1) == [task.id.encode()]


@pytest.mark.usefixtures("forwarder")
def test_a_busy_worker_costs_no_attempt(tasks, stub):
    task = run(tasks, {"busy": 3, "echo": 1})
    assert (task.status, task.attempt) == (TaskStatus.SUCCEEDED, 1)
    assert len(stub.calls) == 4


def test_a_worker_that_cannot_be_reached_costs_no_attempt(start_forwarder, redis_client, redis_url, tasks, objects):
    with worker_stub() as gone:
        pass
    write_route(redis_client, ENDPOINT, gone.url)
    start_forwarder(ENDPOINT, redis_url=redis_url)
    task = tasks.submit(new_task(max_attempts=1)).task
    wait_for(lambda: b"not_sent" in {fields[b"reason"] for _, fields in redis_client.xrange(f"events:{task.id}")})
    with worker_stub() as stub:
        write_route(redis_client, ENDPOINT, stub.url)
        task = until_final(tasks, task.id, objects=objects)
    assert (task.status, task.attempt) == (TaskStatus.SUCCEEDED, 1)


@pytest.mark.usefixtures("forwarder")
def test_an_attempt_that_is_too_slow_is_stopped_in_its_worker(tasks, stub):
    task = run(tasks, {"sleep": 60}, timeout_seconds=0.3, max_attempts=1)
    assert (task.status, task.error["type"]) == (TaskStatus.FAILED, "upstream_timeout")
    assert stub.cancels == [f"{task.id}.1"]


@pytest.mark.usefixtures("forwarder")
def test_a_running_task_is_cancelled_in_its_worker(tasks, stub):
    task = tasks.submit(new_task({"sleep": 60})).task
    until_running(tasks, task.id)
    assert tasks.cancel(task.id) == "requested"
    assert until_final(tasks, task.id).status is TaskStatus.CANCELLED
    assert f"{task.id}.1" in stub.cancels


def test_a_cancelled_queued_task_is_never_run(start_forwarder, redis_client, redis_url, tasks, stub):
    task = tasks.submit(new_task()).task
    tasks.cancel(task.id)
    write_route(redis_client, ENDPOINT, stub.url)
    start_forwarder(ENDPOINT, redis_url=redis_url)
    other = run(tasks, {"echo": 1})
    assert [call["X-Brinery-Task-Id"] for call in stub.calls] == [other.id]


# -------------------------------------------------------------------------------------------------- slots and order
def test_a_cold_endpoint_s_task_stays_queued_and_asks_for_a_worker(
    start_forwarder, redis_client, redis_url, tasks, stub, objects
):
    with redis_client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(DEMAND)
        task = tasks.submit(new_task()).task
        start_forwarder(ENDPOINT, redis_url=redis_url)
        assert wait_for(lambda: pubsub.get_message(timeout=1))["data"] == ENDPOINT.encode()
    tasks.sweep(objects)
    waiting = tasks.get(task.id)
    assert (waiting.status, waiting.attempt) == (TaskStatus.QUEUED, 0)
    write_route(redis_client, ENDPOINT, stub.url)
    assert until_final(tasks, task.id).attempt == 1


@pytest.mark.usefixtures("forwarder")
def test_no_more_tasks_run_than_there_are_slots_and_more_workers_take_more(redis_client, tasks, stub):
    ids = [tasks.submit(new_task({"sleep": 60})).task.id for _ in range(10)]

    def running():
        return sum(tasks.get(task_id).status is TaskStatus.RUNNING for task_id in ids)

    wait_for(lambda: running() == 4)
    with worker_stub() as second:
        write_route(redis_client, ENDPOINT, stub.url, second.url)
        wait_for(lambda: running() == 8)
        wait_for(lambda: len(second.calls) == 4)
        assert not redis_client.exists("unacked"), "what is in hand is counted here and noted nowhere else"
        for task_id in ids:
            tasks.cancel(task_id)
        for task_id in ids:
            until_final(tasks, task_id)


def test_while_cold_the_queue_keeps_its_order_of_priority(start_forwarder, redis_client, redis_url, tasks, stub):
    start_forwarder(ENDPOINT, redis_url=redis_url)
    ordinary = [tasks.submit(new_task()).task.id for _ in range(5)]
    wait_for(lambda: any(redis_client.hget(f"task:{task_id}", "holder") for task_id in ordinary))
    urgent = tasks.submit(new_task(priority=9)).task.id
    write_route(redis_client, ENDPOINT, stub.url, concurrency=1)
    for task_id in ordinary:
        until_final(tasks, task_id)
    order = [call["X-Brinery-Task-Id"] for call in stub.calls]
    assert order.index(urgent) <= 2, "behind what was taken before it came, ahead of the rest"


@pytest.mark.usefixtures("forwarder")
def test_a_task_that_needs_a_worker_for_itself_runs_beside_no_other(tasks):
    before = tasks.submit(new_task({"sleep": 1})).task.id
    until_running(tasks, before)
    alone = tasks.submit(new_task({"sleep": 1}, alone=True)).task.id
    until_running(tasks, alone)
    after = [tasks.submit(new_task()).task.id for _ in range(3)]
    first, middle, *last = [until_final(tasks, task_id) for task_id in (before, alone, *after)]
    # Each task's times are Redis' at its claim, give or take what that took; beside one another would be a second.
    assert first.answered_at <= middle.sent_at + 0.5
    assert middle.answered_at <= min(task.sent_at for task in last) + 0.5
    assert {task.attempt for task in (first, middle, *last)} == {1}


@pytest.mark.usefixtures("forwarder")
def test_a_task_that_waits_for_a_worker_of_its_own_can_be_cancelled_and_leaves_the_worker_to_others(tasks, stub):
    before = tasks.submit(new_task({"sleep": 60})).task.id
    until_running(tasks, before)
    alone = tasks.submit(new_task(alone=True)).task.id
    until_running(tasks, alone)
    tasks.cancel(alone)
    assert until_final(tasks, alone).status is TaskStatus.CANCELLED
    assert run(tasks, {"echo": 1}).status is TaskStatus.SUCCEEDED
    assert alone not in [call["X-Brinery-Task-Id"] for call in stub.calls]
    tasks.cancel(before)
    until_final(tasks, before)


@pytest.mark.usefixtures("forwarder")
def test_the_load_is_written_while_tasks_run(redis_client, tasks):
    task = tasks.submit(new_task({"sleep": 60})).task

    def load():
        entries = [orjson.loads(raw) for raw in redis_client.hvals(LOAD)]
        return [entry["endpoints"][ENDPOINT]["in_flight"] for entry in entries]

    wait_for(lambda: load() == [1])
    tasks.cancel(task.id)
    wait_for(lambda: load() == [0])


# ------------------------------------------------------------------------------------------------- deaths and losses
def test_a_killed_forwarder_s_task_runs_again_and_succeeds(
    start_forwarder, redis_client, redis_url, tasks, stub, objects
):
    write_route(redis_client, ENDPOINT, stub.url)
    first = start_forwarder(ENDPOINT, redis_url=redis_url)
    task = tasks.submit(new_task({"sleep": 2, "echo": "done"})).task
    until_running(tasks, task.id)
    first.kill()
    first.wait()
    assert tasks.incarnation_died("fwd_a") == 1
    start_forwarder(ENDPOINT, redis_url=redis_url, running_id="fwd_b")
    task = until_final(tasks, task.id, objects=objects)
    assert (task.status, task.attempt, task.result) == (TaskStatus.SUCCEEDED, 2, b'"done"')


def test_a_killed_forwarder_s_messages_that_it_had_not_claimed_come_again(
    start_forwarder, redis_client, redis_url, tasks, stub, objects
):
    write_route(redis_client, ENDPOINT, stub.url, concurrency=1)
    first = start_forwarder(ENDPOINT, redis_url=redis_url)
    running = tasks.submit(new_task({"sleep": 2})).task
    until_running(tasks, running.id)
    waiting = [tasks.submit(new_task()).task.id for _ in range(3)]
    wait_for(lambda: len(messages(redis_client)) == 2)  # one is in hand, beyond the only slot
    first.kill()
    first.wait()
    assert tasks.incarnation_died("fwd_a") == 1
    start_forwarder(ENDPOINT, redis_url=redis_url, running_id="fwd_b")
    done = [until_final(tasks, task_id, objects=objects) for task_id in (running.id, *waiting)]
    assert [(task.status, task.attempt) for task in done] == [
        (TaskStatus.SUCCEEDED, 2),
        *[(TaskStatus.SUCCEEDED, 1)] * 3,
    ]


def test_a_frozen_forwarder_loses_its_task_and_its_late_answer_changes_nothing(
    start_forwarder, redis_client, redis_url, tasks, stub, objects
):
    write_route(redis_client, ENDPOINT, stub.url)
    frozen = start_forwarder(ENDPOINT, redis_url=redis_url)
    task = tasks.submit(new_task({"sleep": 1, "echo": "done"})).task
    until_running(tasks, task.id)
    frozen.send_signal(signal.SIGSTOP)
    old = tasks.get(task.id).incarnation
    redis_client.delete(f"incarnation:{old}")  # its lease runs out
    trusts_the_leases(redis_client)
    assert tasks.sweep(objects).requeued == 1
    start_forwarder(ENDPOINT, redis_url=redis_url, running_id="fwd_b")
    task = until_final(tasks, task.id, objects=objects)
    assert (task.status, task.attempt) == (TaskStatus.SUCCEEDED, 2)
    frozen.send_signal(signal.SIGCONT)
    wait_for(lambda: {i.decode().split(":")[0] for i in redis_client.smembers("incarnations")} == {"fwd_a", "fwd_b"})
    assert old.encode() not in redis_client.smembers("incarnations"), "it lives on under a new id"
    assert tasks.get(task.id) == task


def test_sigterm_finishes_what_runs_and_gives_back_what_does_not(start_forwarder, redis_client, redis_url, tasks, stub):
    write_route(redis_client, ENDPOINT, stub.url, concurrency=1)
    forwarder = start_forwarder(ENDPOINT, redis_url=redis_url)
    running = tasks.submit(new_task({"sleep": 1, "echo": 1})).task
    until_running(tasks, running.id)
    waiting = [tasks.submit(new_task()).task.id for _ in range(3)]
    forwarder.send_signal(signal.SIGTERM)
    assert forwarder.wait(20) == 0
    assert tasks.get(running.id).status is TaskStatus.SUCCEEDED
    assert redis_client.scard("incarnations") == 0
    assert redis_client.hlen(LOAD) == 0
    start_forwarder(ENDPOINT, redis_url=redis_url, running_id="fwd_b")
    assert {until_final(tasks, task_id).attempt for task_id in waiting} == {1}


def test_sigterm_of_a_cold_forwarder_gives_its_message_back(start_forwarder, redis_client, redis_url, tasks, stub):
    forwarder = start_forwarder(ENDPOINT, redis_url=redis_url)
    task = tasks.submit(new_task()).task
    wait_for(lambda: redis_client.hget(f"task:{task.id}", "holder"))
    forwarder.send_signal(signal.SIGTERM)
    assert forwarder.wait(20) == 0
    write_route(redis_client, ENDPOINT, stub.url)
    start_forwarder(ENDPOINT, redis_url=redis_url, running_id="fwd_b")
    assert until_final(tasks, task.id).attempt == 1


@pytest.mark.usefixtures("forwarder")
def test_a_lease_that_ran_out_with_nobody_declared_dead_is_renewed_and_not_given_up(tasks, redis_client):
    slow = tasks.submit(new_task({"sleep": 2})).task
    until_running(tasks, slow.id)
    (mine,) = redis_client.smembers("incarnations")
    redis_client.delete(b"incarnation:" + mine)  # as after a Redis that stood still
    assert run(tasks, {"echo": 1}).status is TaskStatus.SUCCEEDED
    assert until_final(tasks, slow.id).attempt == 1
    assert redis_client.smembers("incarnations") == {mine}


def test_a_forwarder_outlives_its_redis_and_loses_nothing(start_forwarder, own_valkey, stub, objects):
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(redis.Redis.from_url(own_valkey.url))
        tasks = Tasks(client)
        write_route(client, ENDPOINT, stub.url)
        start_forwarder(ENDPOINT, redis_url=own_valkey.url)
        running = tasks.submit(new_task({"sleep": 2, "echo": "done"})).task
        until_running(tasks, running.id)
        waiting = [tasks.submit(new_task({"sleep": 0.5})).task.id for _ in range(6)]
        own_valkey.kill()
        time.sleep(3)  # the running task ends while nobody can be told
        own_valkey.start()
        done = until_final(tasks, running.id, objects=objects)
        assert (done.status, done.attempt) == (TaskStatus.SUCCEEDED, 1)
        for task_id in waiting:
            assert until_final(tasks, task_id, objects=objects).status is TaskStatus.SUCCEEDED
        runs = [call["X-Brinery-Task-Id"] for call in stub.calls]
        assert len(runs) == len(set(runs)), "nothing ran twice"
        late = tasks.submit(new_task({"sleep": 60})).task
        until_running(tasks, late.id)
        tasks.cancel(late.id)
        assert until_final(tasks, late.id).status is TaskStatus.CANCELLED, "signals are heard again, too"


@pytest.mark.usefixtures("forwarder")
def test_messages_that_mean_nothing_are_dropped(tasks, stub, redis_client):
    task = tasks.submit(new_task()).task
    for _ in range(3):  # doubled deliveries of one task
        raw = redis_client.lindex(f"{queue_name(ENDPOINT)}\x06\x165", -1)
        if raw is not None:
            redis_client.lpush(f"{queue_name(ENDPOINT)}\x06\x165", raw.replace(b".1", b".2"))
    unknown = tasks.submit(new_task(id="tsk_unknown")).task
    redis_client.delete(f"task:{unknown.id}")
    last = run(tasks, {"echo": 1})
    until_final(tasks, task.id)
    runs = [call["X-Brinery-Task-Id"] for call in stub.calls]
    assert runs.count(task.id) == 1
    assert runs.count(last.id) == 1


@pytest.mark.usefixtures("forwarder")
def test_a_store_that_is_away_delays_a_large_result_and_loses_nothing(tasks, objects, tmp_path):
    first = run(tasks, {"echo": 1})
    wait_for(lambda: objects.exists(celery_object(first.id)))  # what comes first makes the folder
    (tmp_path / "objects").rename(tmp_path / "elsewhere")
    (tmp_path / "objects").write_bytes(b"in the way")
    small, large = (tasks.submit(new_task(wanted)).task.id for wanted in ({"echo": 1}, {"size": 1_000_000}))
    assert until_final(tasks, small).status is TaskStatus.SUCCEEDED, "its result lies in its record"
    until_running(tasks, large)
    time.sleep(1)
    assert tasks.get(large).status is TaskStatus.RUNNING
    (tmp_path / "objects").unlink()
    (tmp_path / "elsewhere").rename(tmp_path / "objects")
    assert until_final(tasks, large).status is TaskStatus.SUCCEEDED
    wait_for(lambda: all(objects.exists(celery_object(task_id)) for task_id in (small, large)))


@pytest.mark.usefixtures("forwarder")
def test_an_endpoint_that_leaves_the_table_has_no_workers(redis_client, tasks, stub):
    run(tasks, {"echo": 1})
    redis_client.hdel(ROUTING, ENDPOINT)
    redis_client.publish(ROUTING, ENDPOINT)
    time.sleep(0.3)
    task = tasks.submit(new_task()).task
    wait_for(lambda: redis_client.hget(f"task:{task.id}", "holder"))
    assert tasks.get(task.id).attempt == 0
    write_route(redis_client, ENDPOINT, stub.url)
    until_final(tasks, task.id)


def test_an_input_that_cannot_be_read_for_a_while_delays_its_task(
    start_forwarder, redis_client, redis_url, tasks, stub, objects, tmp_path
):
    task = new_task(input=None, max_attempts=1)
    object.__setattr__(task, "input_object", input_object(task.id, "0"))
    objects.put(task.input_object, b'{"echo": 1}')
    (tmp_path / "objects").rename(tmp_path / "elsewhere")
    (tmp_path / "objects").symlink_to("objects")  # a loop: every use of it fails
    write_route(redis_client, ENDPOINT, stub.url)
    start_forwarder(ENDPOINT, redis_url=redis_url)
    tasks.submit(task)
    until_running(tasks, task.id)
    time.sleep(0.5)
    (tmp_path / "objects").unlink()
    (tmp_path / "elsewhere").rename(tmp_path / "objects")
    done = until_final(tasks, task.id, objects=objects)
    assert (done.status, done.attempt) == (TaskStatus.SUCCEEDED, 1)
