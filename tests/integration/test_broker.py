"""Messages of our scripts and of `publish`, read by an unmodified Celery worker; results read by plain Celery."""

import json
import subprocess
import sys

import pytest
import redis
from celery import Celery
from celery.result import AsyncResult
from task_records import ENDPOINT, new_task

from brinery.errors import UnavailableError
from brinery_platform.broker import (
    BUILD,
    BUILDS,
    PREDICT,
    PRIORITIES,
    broker_url,
    make_app,
    message_template,
    publish,
    queue_name,
    wire_priority,
)
from brinery_platform.settings import Settings
from brinery_platform.tasks import Tasks
from servers import ValkeyProcess, wait_for

PLAIN_WORKER = f"""
import json, sys
from celery import Celery
url, queue, name, results = sys.argv[1:]
app = Celery("other", broker=url)
app.conf.update(
    worker_prefetch_multiplier=1,
    task_acks_late=True,
    broker_transport_options={{"priority_steps": list(range({PRIORITIES})), "queue_order_strategy": "priority"}},
)

@app.task(name=name, bind=True)
def note(self, **kwargs):
    info = self.request.delivery_info
    print(json.dumps([self.request.id, info["routing_key"], info["priority"], kwargs]), file=open(results, "a"))

app.Worker(queues=[queue], pool="solo", loglevel="WARNING", quiet=True).start()
"""


@pytest.fixture
def settings(redis_url, tmp_path) -> Settings:
    return Settings(redis_url=redis_url, objects_url=f"file://{tmp_path}/objects", home=tmp_path)


@pytest.fixture
def app(settings):
    app = make_app(settings)
    yield app
    app.close()


@pytest.fixture
def read_by_celery(settings, tmp_path):
    """Read a queue with a Celery worker that knows nothing of ours, until so many messages have come."""
    started = []

    def read(queue: str, name: str, count: int) -> list[list]:
        found = tmp_path / "found"
        url = settings.redis
        with (tmp_path / "worker.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", PLAIN_WORKER, url, queue, name, str(found)], stdout=log, stderr=log
            )
        started.append(process)
        wait_for(lambda: found.exists() and len(found.read_text().splitlines()) >= count)
        return [json.loads(line) for line in found.read_text().splitlines()]

    yield read
    for process in started:
        process.terminate()
        process.wait(20)


def test_the_messages_of_our_scripts_are_read_by_plain_celery_the_most_urgent_first(redis_client, read_by_celery):
    tasks = Tasks(redis_client)
    submitted = [tasks.submit(new_task(priority=priority)).task for priority in (4, 0, 9, 4)]
    found = read_by_celery(queue_name(ENDPOINT), PREDICT, 4)
    first, second, third, fourth = submitted
    expected = [(third, 0), (first, 5), (fourth, 5), (second, 9)]
    assert found == [[task.id, queue_name(ENDPOINT), priority, {}] for task, priority in expected]
    wait_for(lambda: not redis_client.exists("unacked"))


def test_our_message_is_the_one_that_celery_itself_publishes(app, redis_client):
    publish(app, queue=queue_name(ENDPOINT), task_name=PREDICT, task_id="tsk_1", kwargs={}, priority=7)
    Tasks(redis_client).submit(new_task(id="tsk_1", priority=7))
    ours, celery_s = (
        json.loads(raw) for raw in redis_client.lrange(f"{queue_name(ENDPOINT)}\x06\x16{wire_priority(7)}", 0, 1)
    )
    assert ours["headers"].pop("brinery_sequence") == 1
    for message in (ours, celery_s):
        del message["headers"]["origin"], message["properties"]["reply_to"], message["properties"]["delivery_tag"]
    assert ours == celery_s


def test_the_template_is_the_same_in_every_process():
    command = [sys.executable, "-c", "from brinery_platform.broker import message_template as t; print(t(), end='')"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == message_template()


def test_publish_puts_a_build_on_its_queue(app, read_by_celery):
    publish(app, queue=BUILDS, task_name=BUILD, task_id="one", kwargs={"key": "abc"})
    assert read_by_celery(BUILDS, BUILD, 1) == [["one", BUILDS, wire_priority(4), {"key": "abc"}]]


def test_publish_to_a_broker_that_is_away_is_unavailable(own_valkey, tmp_path):
    app = make_app(Settings(redis_url=own_valkey.url, objects_url=f"file://{tmp_path}", home=tmp_path))
    own_valkey.kill()
    with pytest.raises(UnavailableError):
        publish(app, queue=BUILDS, task_name=BUILD, task_id="one", kwargs={})
    own_valkey.start()
    publish(app, queue=BUILDS, task_name=BUILD, task_id="one", kwargs={})
    with redis.Redis.from_url(own_valkey.url) as client:
        assert client.keys(f"{BUILDS}*")
    app.close()


def test_results_are_read_by_celery_s_own_async_result(app):
    app.backend.store_result("tsk_1", {"sum": 3}, "SUCCESS")
    app.backend.store_result("tsk_2", ValueError("no"), "FAILURE")
    assert AsyncResult("tsk_1", app=app).get(timeout=5) == {"sum": 3}
    with pytest.raises(ValueError, match="no"):
        AsyncResult("tsk_2", app=app).get(timeout=5)
    assert AsyncResult("tsk_3", app=app).state == "PENDING"
    assert {key: meta["result"] for key, meta in app.backend.get_many(["tsk_1"])} == {"tsk_1": {"sum": 3}}
    AsyncResult("tsk_1", app=app).forget()
    assert AsyncResult("tsk_1", app=app).state == "PENDING"


def test_the_backend_tries_until_its_store_answers(app, tmp_path):
    folder = tmp_path / "objects"
    folder.write_bytes(b"in the way")  # the store cannot be written until it is gone

    def repair(*_arguments) -> None:
        folder.unlink()

    backend = app.backend
    backend.on_backend_retryable_error = repair  # Celery's own hook, called before each further try
    backend.store_result("tsk_1", 1, "SUCCESS")
    assert AsyncResult("tsk_1", app=app).get(timeout=5) == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("redis://:pw@127.0.0.1:6379/2", "redis://:pw@127.0.0.1:6379/2"),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock?virtual_host=0"),
        ("unix://:p%40w@/run/redis.sock?db=3", "redis+socket://:p%40w@/run/redis.sock?virtual_host=3"),
        ("unix:///run/redis.sock?password=p@w", "redis+socket://:p%40w@/run/redis.sock?virtual_host=0"),
    ],
)
def test_broker_urls_are_kombu_s_form_of_redis_urls(given, expected):
    assert broker_url(given) == expected


def test_a_unix_socket_with_a_password_works_for_celery_too(tmp_path):
    server = ValkeyProcess(tmp_path)
    path = tmp_path / "s"
    server.start(unixsocket=str(path))
    try:
        settings = Settings(redis_url=f"unix://:secret@{path}?db=1", objects_url=f"file://{tmp_path}", home=tmp_path)
        app: Celery = make_app(settings)
        publish(app, queue=BUILDS, task_name=BUILD, task_id="one", kwargs={})
        app.close()
        with redis.Redis.from_url(settings.redis) as client:
            assert client.keys(f"{BUILDS}*")
    finally:
        server.kill()
