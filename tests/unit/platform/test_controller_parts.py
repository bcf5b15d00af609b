"""The controller's parts when what they need is away: nothing that runs is forgotten."""

import threading
from types import SimpleNamespace

import pytest
from redis.exceptions import RedisError

from brinery.errors import DeploymentError, UnavailableError
from brinery_platform.condemned import Sentence
from brinery_platform.controller.endpoint import Endpoint
from brinery_platform.controller.health import Health
from brinery_platform.controller.load import Load
from brinery_platform.controller.stops import Stops
from brinery_platform.controller.worker import Worker
from brinery_platform.runtimes.base import Running

SENTENCE = Sentence(endpoint_id="end_1", request_id="req_1", reason="call req_1 was cancelled")


class Redis:
    """Takes everything, unless it is away."""

    away = False

    def set(self, *_args, **_options):
        if self.away:
            raise RedisError

    def __getattr__(self, _name):
        return lambda *_args, **_options: None


def endpoint_of(image_ids, *, redis=None, health=None):
    """An endpoint whose workers are images, and the list of what it stops."""
    stopped = []
    runtime = SimpleNamespace(poll=lambda _worker_id: None)
    prober = SimpleNamespace(forget=lambda _worker_id: None, health=lambda _worker_id: health)
    endpoint = Endpoint(
        services=SimpleNamespace(redis=redis or Redis(), runtime=runtime),
        forwarder=None,
        builds=None,
        prober=prober,
        stop=lambda worker_id, _grace: stopped.append(worker_id),
        id="end_1",
    )
    for worker_id in image_ids:
        running = Running(id=worker_id, kind="worker", endpoint_id="end_1", version=1, ready_route="/readyz")
        endpoint.workers[worker_id] = Worker(running, started_at=0.0, ready=True)
    return endpoint, stopped


def test_a_condemned_worker_is_not_forgotten_while_redis_is_away():
    redis = Redis()
    redis.away = True
    endpoint, stopped = endpoint_of(["wrk_1"], redis=redis)
    load = Load(condemned={"wrk_1": SENTENCE})
    with pytest.raises(RedisError):
        endpoint._collect(load, 0.0)
    assert (list(endpoint.workers), stopped) == (["wrk_1"], [])
    redis.away = False
    endpoint._collect(load, 0.0)
    assert (list(endpoint.workers), stopped) == ([], ["wrk_1"])


def test_only_an_images_own_calls_excuse_its_silence():
    endpoint, _ = endpoint_of(["wrk_1", "wrk_2"], health=Health("silent"))
    endpoint._collect(Load(in_flight=1, workers={"wrk_2": 1}), 7.0)
    assert [worker.silent_since for worker in endpoint.workers.values()] == [7.0, None]


class Flaky:
    """A runtime whose engine raises these errors, one for each stop, before it works."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.asked = []

    def stop(self, running_id, *, grace_seconds):
        self.asked.append((running_id, grace_seconds))
        if self.errors:
            raise self.errors.pop(0)


def test_an_end_that_an_absent_engine_missed_is_ordered_again():
    runtime, ended = Flaky(UnavailableError("away"), UnavailableError("away")), threading.Event()
    stops = Stops(runtime, ended.set, again_seconds=0.01)
    try:
        stops.order("wrk_1", 2.0)
        assert ended.wait(30)
        assert runtime.asked == [("wrk_1", 2.0)] * 3
    finally:
        stops.close()


def test_closing_waits_for_no_engine_that_is_away_and_a_refusal_keeps_no_thread():
    runtime, ended = Flaky(DeploymentError("no"), *[UnavailableError("away")] * 3), threading.Event()
    stops = Stops(runtime, ended.set, again_seconds=600)
    stops.order("wrk_1", 0.0)
    stops.order("wrk_2", 0.0)
    stops.close()
    assert (len(runtime.asked), ended.is_set()) == (2, False)
