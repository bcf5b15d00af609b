"""When webhooks are sent again, how slow receivers are kept apart, and what a message and a secret are."""

import asyncio
import json

import orjson
import pytest

from brinery.spec import Task, TaskStatus
from brinery.webhooks import verify
from brinery_platform import webhooks
from brinery_platform.gateway.receivers import LANES, SLOW_HOST_LANES, SLOW_OWNER_LANES, SLOW_SECONDS, Receivers
from brinery_platform.gateway.webhooks import Schedule
from brinery_platform.signing import sign, webhook_secret


def final_task(**changes):
    values = {
        "id": "tsk_1",
        "endpoint_id": "end_1",
        "owner": "ann",
        "status": TaskStatus.SUCCEEDED,
        "attempt": 1,
        "max_attempts": 3,
        "priority": 4,
        "timeout_seconds": 30.0,
        "result_ttl_seconds": 600.0,
        "created_at": 1_700_000_000.0,
        "expires_at": 1_700_000_600.0,
        "finished_at": 1_700_000_001.5,
    }
    return Task(**{**values, **changes})


def test_pauses_double_up_to_a_limit_with_jitter():
    schedule = Schedule()
    for attempts, pause in ((1, 5), (2, 10), (3, 20), (7, 300), (30, 300)):
        found = [schedule.next_at(1000.0, attempts, 1000.0) - 1000.0 for _ in range(200)]
        assert pause / 2 <= min(found) < pause * 0.7 < max(found) <= pause


def test_the_last_try_is_made_an_hour_after_the_end():
    schedule = Schedule()
    assert schedule.next_at(4599.0, 20, 1000.0) == 4600.0
    assert schedule.next_at(4600.0, 21, 1000.0) is None


def test_a_message_and_its_headers_are_what_the_verifier_of_the_sdk_takes(tmp_path):
    secret = webhook_secret(tmp_path, "ann")
    body = webhooks.message(final_task(), {"id": "tsk_1", "result": orjson.Fragment(b'{"x": 1}')})
    head = webhooks.headers("tsk_1", body, secret, 1_700_000_002.9)
    assert head["webhook-timestamp"] == "1700000002"
    assert verify(body, head, webhooks.secret_text(secret), tolerance_seconds=1e12) == {
        "type": "task.succeeded",
        "timestamp": "2023-11-14T22:13:21.500000+00:00",
        "data": {"id": "tsk_1", "result": {"x": 1}},
    }


@pytest.mark.parametrize("status", [status for status in TaskStatus if status.final])
def test_the_type_names_how_the_task_ended(status):
    assert json.loads(webhooks.message(final_task(status=status), {}))["type"] == f"task.{status}"


def test_each_owner_has_a_lasting_secret_of_their_own(tmp_path):
    assert webhook_secret(tmp_path, "ann") == webhook_secret(tmp_path, "ann")
    assert len(webhook_secret(tmp_path, "ann")) == 32
    others = {webhook_secret(tmp_path, "bob"), webhook_secret(tmp_path / "elsewhere", "ann")}
    assert len({webhook_secret(tmp_path, "ann"), *others}) == 3
    assert webhook_secret(tmp_path, "ann").hex() != sign(tmp_path, "webhooks", "ann", "")


def test_what_receivers_say_is_kept_short_and_printable():
    assert webhooks.printable(" a\x00b\r\n\tc\u202e  d ") == "a b c d"
    assert webhooks.printable("x" * 1000, 10) == "x" * 9 + "…"


def test_quick_receivers_may_have_every_lane_and_slow_ones_only_some():
    async def scenario():
        receivers = Receivers()
        tries = [receivers.engaged("ann", "quick") for _ in range(LANES)]
        for one in tries:
            assert receivers.admits("ann", "quick")
            one.__enter__()
        for one in tries:
            one.__exit__(None, None, None)
        slow = [receivers.engaged("ann", "slow") for _ in range(SLOW_HOST_LANES)]
        for one in slow:
            one.__enter__()
        assert receivers.admits("ann", "slow")
        await asyncio.sleep(SLOW_SECONDS + 0.2)
        assert not receivers.admits("ann", "slow")
        assert receivers.admits("ann", "other")
        assert receivers.admits("bob", "slow")
        more = [receivers.engaged("ann", f"host{number}") for number in range(SLOW_OWNER_LANES - SLOW_HOST_LANES)]
        for one in more:
            one.__enter__()
        assert not receivers.admits("ann", "other")
        assert receivers.admits("bob", "slow")
        for one in [*slow, *more]:
            one.__exit__(None, None, None)
        assert receivers.admits("ann", "slow")

    asyncio.run(scenario())
