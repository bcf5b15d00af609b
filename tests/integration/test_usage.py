"""What workers use, on a real Redis: nobody looks while nobody watches, and what is told is of this moment."""

import pytest
import redis

from brinery.errors import UnavailableError
from brinery_platform.controller.usage import UsageKeeper
from brinery_platform.runtimes.base import Usage
from brinery_platform.usage import USAGE, WATCHED, Watch
from idle_runtime import IdleRuntime
from servers import free_port, wait_for


class CountingRuntime(IdleRuntime):
    """A runtime that runs nothing: each look finds that its workers have used half a second more."""

    def __init__(self):
        self.looks = 0
        self.away = False

    def usage(self, running_ids):
        self.looks += 1
        if self.away:
            raise UnavailableError("The engine does not answer.")
        one = Usage(cpu_seconds=self.looks / 2, memory_bytes=100 * 2**20, memory_limit_bytes=0, pids=7)
        return dict.fromkeys(running_ids, one)


@pytest.fixture
def runtime():
    return CountingRuntime()


@pytest.fixture
def keeper(runtime, redis_client):
    keeper = UsageKeeper(runtime, redis_client)
    yield keeper
    keeper.close()


def test_nobody_looks_while_nobody_watches(keeper, runtime, redis_client):
    keeper.look({"wrk_1": "end_1"})
    keeper.close()
    assert runtime.looks == 0
    Watch(redis_client).look("end_1", [])
    assert not redis_client.exists(WATCHED)


def test_a_watcher_is_told_of_its_workers_and_of_no_others(keeper, runtime, redis_client):
    watch = Watch(redis_client)
    assert watch.look("end_1", ["wrk_1"]) == {}
    keeper.look({"wrk_1": "end_1", "wrk_2": "end_2"})
    told = wait_for(lambda: watch.look("end_1", ["wrk_1", "wrk_none"]))
    assert told.keys() == {"wrk_1"}
    assert (told["wrk_1"]["memory_mib_used"], told["wrk_1"]["pids"]) == (100.0, 7)
    assert told["wrk_1"]["cpus_used"] > 0
    assert watch.look("end_1", ["wrk_2"]) == {}
    assert 0 < redis_client.ttl(USAGE) <= 10
    redis_client.delete(WATCHED)
    wait_for(lambda: not keeper.looks)
    looks = runtime.looks
    keeper.look({"wrk_1": "end_1"})
    assert (keeper.looks, runtime.looks) == (False, looks)


def test_an_engine_that_is_away_is_asked_again_by_the_next_look(keeper, runtime, redis_client):
    watch = Watch(redis_client)
    runtime.away = True
    watch.look("end_1", ["wrk_1"])
    keeper.look({"wrk_1": "end_1"})
    wait_for(lambda: runtime.looks and not keeper.looks)
    runtime.away = False
    keeper.look({"wrk_1": "end_1"})
    assert wait_for(lambda: watch.look("end_1", ["wrk_1"]))


def test_without_redis_nothing_is_known_and_nobody_waits_for_it():
    with redis.Redis(port=free_port(), socket_connect_timeout=0.5) as away:
        assert Watch(away).look("end_1", ["wrk_1"]) == {}
