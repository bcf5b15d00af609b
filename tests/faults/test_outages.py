"""What the platform stands on goes away for a while, in the middle of 300 tasks: Redis, the object store, the clock."""

import time

import pytest
from clock_step import HOUR_SECONDS, PARTS, Clocks
from fault_ledger import assert_nothing_lost, settle
from fault_load import Load
from fault_stack import FaultStack
from s3_faults import S3Faults
from victims import drop_connections, fill, freeze_redis, small_disk

from servers import S3_KEYS, ValkeyProcess, rclone_s3

BEFORE = 60
OUTAGE_SECONDS = 10.0
"""Of most ways in which the object store can be away."""
REFUSING_SECONDS = 30.0
STEP_SECONDS = 3.0
"""For how long a clock is wrong."""


@pytest.fixture
def own(tmp_path):
    """Make a platform of this test's own, with variables."""
    made = []

    def make(**environment):
        made.append(FaultStack(tmp_path / "stack", **environment))
        made[0].start()
        return made[0]

    yield make
    for stack in made:
        stack.kill_everything()


def started(stack, **choices):
    load = Load(stack, **choices)
    load.start()
    load.until_ended(BEFORE)
    return load


def test_redis_stands_still_for_30_seconds(stack):
    """Every lease runs out with nobody dead: after a gap of its own the sweep judges nobody for one whole lease."""
    load = started(stack)
    at = freeze_redis(stack)
    load.join()
    assert_nothing_lost(settle(load, "Redis frozen for 30 s", at), twice_allowed=False)


def test_redis_drops_every_connection(stack):
    """A message that comes again while its task runs is dropped by its record; who listens looks again after a gap."""
    load = started(stack)
    at = drop_connections(stack)
    load.join()
    assert_nothing_lost(settle(load, "every connection to Redis dropped (5 times)", at), twice_allowed=False)


def test_a_redis_of_the_settings_is_killed_and_comes_back_from_its_file(own, tmp_path):
    """Whoever runs something goes on and finishes it when Redis is back; what was accepted is in its file."""
    (tmp_path / "valkey").mkdir()
    server = ValkeyProcess(tmp_path / "valkey")
    server.start()
    try:
        stack = own(BRINERY_REDIS_URL=server.url)
        load = started(stack)
        server.kill()
        time.sleep(3.0)
        server.start()
        at = time.time()
        load.join()
        assert_nothing_lost(settle(load, "own Redis killed, started 3 s later", at), twice_allowed=False)
    finally:
        server.kill()


def test_s3_answers_500_is_slow_and_refuses(own, tmp_path):
    """An attempt with a large result stays running until that is stored: it is repeated until the store answers."""
    (tmp_path / "s3").mkdir()
    with rclone_s3(tmp_path / "s3") as upstream, S3Faults(upstream).serving() as faults:
        keys = {"BRINERY_OBJECTS_URL": "s3://bucket/brinery", "AWS_ENDPOINT_URL": faults.url, **S3_KEYS}
        stack = own(**keys)
        load = started(stack)
        for mode, seconds in (("failing", OUTAGE_SECONDS), ("slow", OUTAGE_SECONDS), ("refusing", REFUSING_SECONDS)):
            faults.be(mode)
            time.sleep(seconds)
        faults.be("whole")
        at = time.time()
        load.join()
        assert faults.requests
        ledger = settle(load, "S3 answered 500 and was slow (10 s each), refused (30 s)", at)
        assert_nothing_lost(ledger, twice_allowed=False)
        stack.kill_everything()


def test_the_object_folder_is_full(stack):
    """A write that fails leaves no part of an object, and is repeated until there is room; new large inputs get 503."""
    with small_disk(stack.home / "objects", mib=64) as filling:
        load = started(stack, large_every=1)
        fill(filling)
        time.sleep(OUTAGE_SECONDS)
        filling.unlink()
        at = time.time()
        load.join()
        ledger = settle(load, "object folder full for 10 s", at)
        assert_nothing_lost(ledger, twice_allowed=False)


def test_a_clock_steps_by_an_hour_in_each_part(own, tmp_path):
    """Redis' clock decides about leases, delays and expiry, and nobody's own clock."""
    clocks = Clocks(tmp_path / "clocks")
    stack = own(**clocks.environment)
    # So slowly that every clock is wrong while tasks are submitted, wait and run.
    load = started(stack, seconds=0.4, pause_seconds=0.08, headers={"X-Brinery-Expires-In-Seconds": "600"})
    for part in PARTS:
        for hours in (1, -1, 0):
            clocks.step(part, hours * HOUR_SECONDS)
            time.sleep(STEP_SECONDS)
    at = time.time()
    load.join()
    ledger = settle(load, "clock of one process ±1 h (gateway, controller, forwarder)", at)
    assert_nothing_lost(ledger, twice_allowed=False, recovers=False)
