"""Celery's own tools beside a real forwarder: ``inspect``, events, Flower, and ``AsyncResult`` for every end."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter

import pytest
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult
from task_records import ENDPOINT, new_task, until_final
from worker_stub import worker_stub, write_route

from brinery.errors import RemoteError, TaskCancelledError, TaskExpiredError, WorkerError
from brinery.spec import TaskStatus
from brinery_platform.broker import PREDICT, make_app
from brinery_platform.settings import Settings
from servers import free_port, wait_for


@pytest.fixture
def app(redis_url, tmp_path):
    app = make_app(Settings(redis_url=redis_url, objects_url=f"file://{tmp_path}/objects", home=tmp_path))
    yield app
    app.close()


@pytest.fixture
def stub(redis_client, redis_url, start_forwarder):
    """A worker of four slots with a forwarder before it."""
    with worker_stub() as stub:
        write_route(redis_client, ENDPOINT, stub.url)
        start_forwarder(ENDPOINT, redis_url=redis_url)
        yield stub


@pytest.fixture
def environment(redis_url, tmp_path) -> dict[str, str]:
    objects_url = f"file://{tmp_path}/objects"
    return {
        **os.environ,
        "BRINERY_HOME": str(tmp_path),
        "BRINERY_REDIS_URL": redis_url,
        "BRINERY_OBJECTS_URL": objects_url,
        "FLOWER_UNAUTHENTICATED_API": "true",
    }


def celery_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "celery", "-A", "brinery_platform.celery_app", *arguments]


# ---------------------------------------------------------------------------------------------------------- inspect
@pytest.mark.usefixtures("stub")
def test_celery_inspect_answers_from_the_command_line(tasks, environment):
    task_id = tasks.submit(new_task({"sleep": 60})).task.id
    wait_for(lambda: tasks.get(task_id).status is TaskStatus.RUNNING)

    def inspect(what: str) -> dict[str, object]:
        node = f"fwd_a@{socket.gethostname()}"  # named, or it would wait for others until its time is over
        command = celery_command("inspect", "--json", "--timeout", "20", "--destination", node, what)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        answers = json.loads(done.stdout[done.stdout.index("{") :])
        assert list(answers) == [node]
        return answers[node]

    assert inspect("ping") == {"ok": "pong"}
    (active,) = inspect("active")
    assert (active["id"], active["name"]) == (task_id, PREDICT)
    assert inspect("stats")["pool"]["max-concurrency"] > 1
    assert PREDICT in inspect("registered")
    tasks.cancel(task_id)
    until_final(tasks, task_id)


# ----------------------------------------------------------------------------------------------------------- events
@pytest.mark.usefixtures("stub")
def test_celery_s_events_tell_of_our_tasks_once_somebody_enables_them(tasks, app):
    heard = []
    connection = app.connection_for_read()
    receiver = app.events.Receiver(connection, handlers={"*": heard.append})
    thread = threading.Thread(target=lambda: receiver.capture(limit=None, timeout=None, wakeup=False))
    thread.start()
    try:
        wait_for(lambda: app.control.enable_events(reply=True, timeout=1.0))

        def events_of(task_id):
            return [event["type"] for event in heard if event.get("uuid") == task_id]

        def run(wanted):
            task_id = tasks.submit(new_task(wanted)).task.id
            until_final(tasks, task_id)
            return task_id

        # The first ones may come before the receiver listens.
        done = wait_for(lambda: next((each for each in [run({"echo": "secret"})] if events_of(each)), None))
        wait_for(lambda: Counter(events_of(done)) == Counter(["task-received", "task-started", "task-succeeded"]))
        failed = run({"raise": "no good"})
        wait_for(lambda: "task-failed" in events_of(failed))
        assert not [event for event in heard if "secret" in str(event.get("result"))], "results are not sent around"
    finally:
        receiver.should_stop = True
        thread.join()
        connection.release()


@pytest.mark.usefixtures("stub")
def test_flower_shows_our_forwarder_and_its_tasks(tasks, environment, tmp_path):
    port = free_port()
    command = celery_command("flower", "--address=127.0.0.1", f"--port={port}", "--state-save-interval=0")
    with (tmp_path / "flower.log").open("wb") as log:
        flower = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path)

    def ask(path: str):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return json.load(answer)
        except (OSError, urllib.error.HTTPError):
            return None

    try:
        (node,) = wait_for(lambda: ask("/api/workers?refresh=true"), seconds=60)
        assert node.startswith("fwd_a@")

        def shown() -> str | None:
            task_id = tasks.submit(new_task()).task.id  # the first ones may come before Flower listens
            until_final(tasks, task_id)
            time.sleep(0.5)
            found = (ask("/api/tasks") or {}).get(task_id)
            return found and found["state"]

        wait_for(lambda: shown() == "SUCCESS", seconds=60)
    finally:
        flower.terminate()
        flower.wait(20)


# ------------------------------------------------------------------------------------------------------ AsyncResult
@pytest.mark.usefixtures("stub")
def test_async_result_tells_of_tasks_that_ran(tasks, app, objects):
    done, wrong, crashed = (
        until_final(tasks, tasks.submit(new_task(wanted, max_attempts=1)).task.id, objects=objects).id
        for wanted in ({"echo": {"sum": 3}}, {"raise": "no good"}, {"crash": 9})
    )
    assert AsyncResult(done, app=app).get(timeout=10) == {"sum": 3}
    with pytest.raises(RemoteError, match="no good"):
        AsyncResult(wrong, app=app).get(timeout=10)
    with pytest.raises(WorkerError):
        AsyncResult(crashed, app=app).get(timeout=10)


def test_async_result_tells_of_tasks_that_ended_without_celery(tasks, app, objects, redis_client):
    cancelled, expired, lost, waiting = (
        tasks.submit(new_task(**changes)).task.id
        for changes in ({}, {"expires_at": time.time() + 0.1}, {"max_attempts": 1}, {})
    )
    tasks.cancel(cancelled)
    tasks.register("fwd_z:host:1:0:z")
    tasks.claim(lost, "fwd_z:host:1:0:z", "token")
    tasks.incarnation_died("fwd_z")
    until_final(tasks, expired, objects=objects)
    for task_id, state, error in (
        (cancelled, "REVOKED", TaskCancelledError),
        (expired, "REVOKED", TaskExpiredError),
        (lost, "FAILURE", WorkerError),
    ):
        result = AsyncResult(task_id, app=app)
        assert (result.state, result.ready()) == (state, True)
        assert result.date_done is not None
        with pytest.raises(error):
            result.get(timeout=10)
        assert not objects.exists(f"results/{task_id}"), "it is read from the record, not written"
    assert AsyncResult(waiting, app=app).state == "PENDING"
    with pytest.raises(CeleryTimeoutError):
        AsyncResult(waiting, app=app).get(timeout=0.2)
    assert AsyncResult("tsk_unknown", app=app).state == "PENDING"
    assert redis_client.exists(f"task:{waiting}")
