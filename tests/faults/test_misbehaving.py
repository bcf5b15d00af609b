"""A task that kills whoever runs it, and a consumer that says nothing for longer than its lease."""

import time

from fault_ledger import assert_nothing_lost, settle
from fault_load import Load
from victims import at_work, frozen, second_forwarder

from brinery.spec import LEASE_SECONDS

BEFORE = 60


def test_a_task_that_kills_its_worker_every_time(stack):
    """Attempts are counted at the claim, so the last one ends it; a neighbour that crashed with it is not charged."""
    load = Load(stack, poison=2, headers={"X-Brinery-Max-Attempts": "2"})
    load.start()
    load.until_ended(BEFORE)
    at = time.time()
    load.join()
    ledger = settle(load, "2 tasks that kill their worker, 298 beside them", at)
    assert_nothing_lost(ledger)
    with stack.http() as client:
        dead = client.get("/v1/tasks", params={"dead": "true", "limit": 1000}).json()["tasks"]
    poison = {task_id for task_id, wanted in load.wanted.items() if wanted.die and task_id in load.accepted}
    assert poison == {task["id"] for task in dead if task["id"] in load.wanted}


def test_a_consumer_gone_silent(stack):
    """Its lease ends and its tasks are given away; a late finish of an attempt that was given away changes nothing."""
    load = Load(stack)
    with second_forwarder(stack):
        load.start()
        load.until_ended(BEFORE)
        with frozen(at_work(stack, least=1)):
            time.sleep(LEASE_SECONDS * 1.4)
        at = time.time()
        load.join()
        assert_nothing_lost(settle(load, "forwarder silent for 14 s, then back", at), recovers=False)


def test_a_consumer_gone_silent_for_good(stack):
    """Its tasks are given away when its lease ends, and the controller puts another process in its place."""
    load = Load(stack)
    load.start()
    load.until_ended(BEFORE)
    silent = at_work(stack, least=1)
    at = time.time()
    load.join()
    assert_nothing_lost(settle(load, "forwarder silent, never back", at), recovers=False)
    assert not silent.is_running()
