"""The controller's process with nothing but settings: what it says of itself, and how it ends."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time

import httpx
import orjson
import pytest

from brinery_platform.controller import farewell
from brinery_platform.controller.reconcile import Controller
from brinery_platform.routes import DESK, ROUTING
from brinery_platform.runtimes.base import Running
from brinery_platform.services import connect
from brinery_platform.settings import read_settings
from idle_runtime import IdleRuntime
from servers import free_port, wait_for


@pytest.fixture
def start(tmp_path, redis_url):
    """Start a controller that was set up, with more settings; killed in the end."""
    started = []

    def start_one(**more):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BRINERY_")}
        environment |= {"BRINERY_HOME": str(tmp_path / "home"), "BRINERY_REDIS_URL": redis_url, **more}
        subprocess.run([sys.executable, "-m", "brinery.cli", "setup"], env=environment, check=True, timeout=120)
        with (tmp_path / "log").open("wb") as log:
            command = [sys.executable, "-m", "brinery_platform.controller"]
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        process.wait()


def ask(port, path):
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=30, trust_env=False)


def test_it_is_ready_when_it_leads_or_another_one_does_and_ends_with_0(start, redis_client):
    port = free_port()
    process = start(BRINERY_RUNTIME="process", BRINERY_DESK_PORT=str(port))
    wait_for(lambda: (reply := ask(port, "/readyz")) and reply.status_code == 200)
    assert redis_client.get(DESK)
    second = free_port()
    start(BRINERY_RUNTIME="process", BRINERY_DESK_PORT=str(second))
    wait_for(lambda: (reply := ask(second, "/readyz")) and reply.status_code == 200)
    assert orjson.loads(redis_client.get(DESK))["url"].endswith(f":{port}")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    wait_for(lambda: orjson.loads(redis_client.get(DESK) or b'{"url":""}')["url"].endswith(f":{second}"))


def test_without_a_socket_it_lives_is_not_ready_and_says_why_once(start, tmp_path):
    port = free_port()
    nowhere = {"DOCKER_HOST": f"unix://{tmp_path}/none.sock"}
    process = start(BRINERY_RUNTIME="docker", BRINERY_DESK_PORT=str(port), **nowhere)
    reply = wait_for(lambda: (reply := ask(port, "/readyz")) and "Docker engine" in reply.text and reply)
    assert reply.status_code == 503
    assert "The Docker engine does not answer (No such file or directory)" in reply.json()["status"]
    assert ask(port, "/healthz").status_code == 200
    time.sleep(2)  # several rounds of its loop, each of which meets the same
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    said = (tmp_path / "log").read_text().splitlines()
    assert len([line for line in said if "controller.waits" in line]) == 1


@pytest.mark.parametrize(("name", "value"), [("BRINERY_DESK_PORT", "banana"), ("BRINERY_LOG_LEVEL", "loud")])
def test_a_setting_that_is_wrong_is_one_line_and_exit_1(tmp_path, name, value):
    environment = {**os.environ, "BRINERY_HOME": str(tmp_path), name: value}
    command = [sys.executable, "-m", "brinery_platform.controller"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert name in done.stderr
    assert len(done.stderr.splitlines()) == 1


# --------------------------------------------------------------------------------------------------------- farewell
class ListedRuntime(IdleRuntime):
    """Knows what was stopped, in which order."""

    def __init__(self, *kinds):
        self.left = [Running(id=f"{kind}_{number}", kind=kind, endpoint_id="") for number, kind in enumerate(kinds)]
        self.stopped = []

    def list(self):
        return list(self.left)

    def stop(self, running_id, *, grace_seconds):
        assert grace_seconds > 0
        self.stopped.append(running_id)
        self.left = [running for running in self.left if running.id != running_id]


def test_all_ends_in_the_order_of_who_needs_whom():
    runtime = ListedRuntime("egress", "worker", "forwarder", "builder", "worker")
    farewell.end_all(runtime)
    assert [running_id.partition("_")[0] for running_id in runtime.stopped] == [
        "builder",
        "forwarder",
        "worker",
        "worker",
        "egress",
    ]


def test_a_gateway_lives_as_long_as_it_is_connected(redis_client, redis_url, tmp_path):
    settings = read_settings(home=tmp_path, redis_url=redis_url)

    async def gateway():
        client = connect(settings).aredis
        try:
            await client.ping()
            return await asyncio.to_thread(farewell.gateway_lives, redis_client)
        finally:
            await client.aclose()

    assert not farewell.gateway_lives(redis_client)
    assert asyncio.run(gateway())
    assert not farewell.gateway_lives(redis_client)


def test_a_new_leader_takes_away_the_rows_of_deleted_endpoints_and_no_others(redis_client, redis_url, tmp_path):
    services = connect(read_settings(home=tmp_path, redis_url=redis_url, runtime="process"))
    controller = Controller(services)
    try:
        assert controller._lease.acquire()
        redis_client.hset(ROUTING, mapping={"end_not_looked_at_yet": b"{}", "end_deleted": b"{}"})
        controller._endpoints["end_not_looked_at_yet"] = controller._new("end_not_looked_at_yet")
        controller._sync_routing()
        assert redis_client.hkeys(ROUTING) == [b"end_not_looked_at_yet"]
    finally:
        controller._end()
