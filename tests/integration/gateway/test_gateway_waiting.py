"""Many who wait for tasks at a real gateway: what they cost, what wakes them, and that all of them are let go."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from gateway_process import Deployed, GatewayProcess
from stub_worker import events_of, wait_until
from task_forwarder import Forwarder, submit

from brinery.spec import TaskStatus, new_id
from brinery_platform import transitions
from brinery_platform.gateway.follow import KEEP_ALIVE_SECONDS
from brinery_platform.tasks import Tasks
from brinery_platform.transitions import script

QUIET_COMMANDS = {"PING", "HGETALL routing", "PUBLISH end-of-silence"}
"""What a gateway sends while nothing happens, however many wait: see ``docs/architecture/gateway.md``."""
POLLS, FOLLOWERS = 300, 50


class Waiting:
    """One request that waits, over a bare socket.

    Args:
        gateway: Where to.
        target: Path and query.
    """

    def __init__(self, gateway, target):
        self.socket = socket.create_connection(("127.0.0.1", gateway.settings.port), timeout=90)
        self.socket.sendall(
            f"GET {target} HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {gateway.key}\r\n"
            "Connection: close\r\n\r\n".encode()
        )
        self.file = self.socket.makefile("rb")

    def until(self, wanted):
        """Read lines up to one with `wanted` in it."""
        while wanted not in (line := self.file.readline()):
            assert line, f"it ended before {wanted!r}"

    def rest(self):
        return self.file.read()

    def close(self):
        self.file.close()
        self.socket.close()


def settled(client):
    """Wait until no task has been read for a second."""

    def reads():
        return client.info("commandstats")["cmdstat_hgetall"]["calls"]

    known, since = reads(), time.monotonic()
    while time.monotonic() - since < 1:
        time.sleep(0.05)
        if (now := reads()) > known + 1:  # the routing table may be read in between
            known, since = now, time.monotonic()


def commands_until(gateway, silence_ends):
    """Return what Redis was sent from now on until `silence_ends` returns, by whomever."""
    client = redis.Redis.from_url(gateway.environment["BRINERY_REDIS_URL"], socket_timeout=90)
    seen = []
    listening = threading.Event()

    def note():
        with client.monitor() as monitor:
            listening.set()
            for each in monitor.listen():
                seen.append(each["command"])
                if each["command"].startswith("PUBLISH end-of-silence"):
                    return

    with client, ThreadPoolExecutor(1) as pool:
        noted = pool.submit(note)
        assert listening.wait(10)
        try:
            silence_ends()
        finally:
            gateway.redis.publish("end-of-silence", "")
        noted.result(30)
    return seen


def test_hundreds_who_wait_ask_redis_nothing_while_nothing_happens(gateway, client, deploy):
    endpoint = deploy()
    ids = [submit(client, endpoint)["id"] for _ in range(10)]
    waiting = []
    try:
        polls = [Waiting(gateway, f"/v1/tasks/{ids[n % 10]}?wait_seconds=60") for n in range(POLLS)]
        waiting += polls
        followers = [Waiting(gateway, f"/v1/tasks/{ids[n % 10]}/events") for n in range(FOLLOWERS)]
        waiting += followers
        for follower in followers:
            follower.until(b'"status":"queued"')
        settled(gateway.redis)

        def keep_alives():
            for follower in followers:
                follower.until(b": keep-alive")

        asked_at = time.monotonic()
        seen = commands_until(gateway, keep_alives)
        assert time.monotonic() - asked_at < 3 * KEEP_ALIVE_SECONDS, "the long-polls may have ended by themselves"
        strange = {command for command in seen if not any(command.startswith(quiet) for quiet in QUIET_COMMANDS)}
        assert not strange
        assert len(seen) < 20
        assert gateway.redis.info("clients")["connected_clients"] < FOLLOWERS
        forwarder = Forwarder(gateway.redis)  # only now: its lease would not last so long
        for task_id in ids:
            forwarder.finish(task_id, result_type="application/json", result=b"[7]")
        for poll in polls:
            assert b'"result":[7]' in poll.rest()
        for follower in followers:
            assert b'"status":"succeeded"' in follower.rest()
    finally:
        for each in waiting:
            each.close()


def test_an_end_that_came_while_every_subscription_was_cut_is_told(gateway, client, deploy):
    task = submit(client, deploy())
    poll = Waiting(gateway, f"/v1/tasks/{task['id']}?wait_seconds=60")
    follower = Waiting(gateway, f"/v1/tasks/{task['id']}/events")
    try:
        follower.until(b'"status":"queued"')
        for channel in ("done", "changes"):
            wait_until(lambda channel=channel: gateway.redis.pubsub_numsub(channel)[0][1] == 1)
        settled(gateway.redis)
        cancel = transitions.cancel(task["id"])
        with gateway.redis.pipeline(transaction=True) as both:
            both.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            both.eval(script(cancel.name).text, 0, *cancel.arguments)
            assert both.execute()[1] == b"cancelled"
        assert b'"status":"cancelled"' in follower.rest()
        assert b'"status":"cancelled"' in poll.rest()
    finally:
        poll.close()
        follower.close()


@pytest.fixture
def second_gateway(gateway, valkey):
    made = GatewayProcess(gateway.home, valkey.connection_url)
    made.start()
    yield made
    made.close()


def test_a_follower_goes_on_at_another_gateway_where_it_was(gateway, client, second_gateway, deploy, forwarder):
    task = submit(client, deploy())
    url = f"/v1/tasks/{task['id']}/events"
    with client.stream("GET", url) as response:
        first = next(response.iter_text())
    assert [data["status"] for _, data in events_of(first)] == ["queued"]
    last_id = first.partition("id: ")[2].partition("\n")[0]
    claim = forwarder.claim(task["id"])
    with (
        second_gateway.client(gateway.key) as there,
        there.stream("GET", url, headers={"Last-Event-ID": last_id}) as response,
    ):
        text = response.iter_text()
        rest = next(text)
        assert [data["status"] for _, data in events_of(rest)] == ["running"]
        forwarder.tasks.finish(claim, TaskStatus.SUCCEEDED, reason="", result_type="application/json", result=b"1")
        rest += "".join(text)
    assert [data["status"] for _, data in events_of(rest)] == ["running", "succeeded"]


def test_many_tasks_are_sent_as_each_becomes_final(client, other_client, deploy, forwarder):
    endpoint = deploy()
    ids = [submit(client, endpoint)["id"] for _ in range(3)]
    foreign, unknown = submit(other_client, deploy(owner="bob"))["id"], new_id("tsk")
    forwarder.finish(ids[1], result_type="application/json", result=b"[1.50]")
    asked = {"ids": [*ids, ids[0], foreign, unknown]}
    with client.stream("POST", "/v1/tasks/events", json=asked) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        text, seen = response.iter_text(), ""
        while len(events_of(seen)) < 3:
            seen += next(text)
        at_once = events_of(seen)
        assert "[1.50]" in seen
        forwarder.finish(ids[2], TaskStatus.FAILED, error={"error": {"type": "remote", "message": "no", "context": {}}})
        forwarder.finish(ids[0], result_type="application/json", result=b"[0]")
        seen += "".join(text)
    told = {data["id"]: (event, data.get("status")) for event, data in events_of(seen)}
    assert {data["id"] for _, data in at_once} == {ids[1], foreign, unknown}
    assert told == {
        ids[0]: ("message", "succeeded"),
        ids[1]: ("message", "succeeded"),
        ids[2]: ("message", "failed"),
        foreign: ("missing", None),
        unknown: ("missing", None),
    }
    assert len(events_of(seen)) == 5, "each is sent once"


@pytest.mark.parametrize("ids", [[], ["tsk_1"] * 10_001, "tsk_1", [1], ["t" * 65], None])
def test_a_list_of_tasks_that_cannot_be_followed_is_refused(client, ids):
    response = client.post("/v1/tasks/events", json={"ids": ids})
    assert (response.status_code, response.json()["error"]["type"]) == (422, "invalid_request")


def test_ten_thousand_tasks_are_followed_at_once(client, deploy):
    task = submit(client, deploy())
    client.delete(f"/v1/tasks/{task['id']}")
    asked = [new_id("tsk") for _ in range(9_999)] + [task["id"]]
    told = events_of(client.post("/v1/tasks/events", json={"ids": asked}).text)
    assert len(told) == 10_000
    assert [data["id"] for event, data in told if event == "message"] == [task["id"]]


def test_everybody_who_follows_is_let_go_when_the_gateway_stops(valkey, tmp_path):
    own = GatewayProcess(tmp_path / "home", valkey.connection_url)
    try:
        own.start()
        endpoint = Deployed(own.redis, f"e{time.time_ns():x}")
        endpoint.serve()
        with own.client() as client, ThreadPoolExecutor(2) as pool:
            wait_until(lambda: client.get(f"/v1/tasks?endpoint={endpoint.name}").status_code == 200)
            task, final = submit(client, endpoint), submit(client, endpoint)
            client.delete(f"/v1/tasks/{final['id']}")
            poll = Waiting(own, f"/v1/tasks/{task['id']}?wait_seconds=60")
            follower = Waiting(own, f"/v1/tasks/{task['id']}/events")
            follower.until(b'"status":"queued"')
            with client.stream("POST", "/v1/tasks/events", json={"ids": [task["id"], final["id"]]}) as response:
                text = response.iter_text()
                assert final["id"] in next(text)
                ended = pool.submit(own.stop, number=signal.SIGTERM)
                assert not list(text)
            assert b"event" not in follower.rest()
            assert json.loads(poll.rest().partition(b"\r\n\r\n")[2])["status"] == "queued"
            assert ended.result(25) == 0  # before the limit of a drain
            poll.close()
            follower.close()
        assert Tasks(own.redis).get(task["id"]).status == TaskStatus.QUEUED
        endpoint.remove()
    finally:
        own.close()
