"""Requests that find no slot: held, woken, bounded, moved to another worker."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import orjson
import pytest
from stub_worker import busy, reply, wait_until

from brinery.spec import MAX_HELD_REQUESTS, EndpointStatus, new_id
from brinery_platform.routes import DEMAND, LOAD


@pytest.fixture
def pool():
    with ThreadPoolExecutor(32) as made:
        yield made


def post(client, endpoint, body=None, **headers):
    return client.post(f"/v1/endpoints/{endpoint.name}/predict", json=body or {}, headers=headers)


def waiting(gateway, endpoint):
    """How many requests the gateway says it holds."""
    entries = [orjson.loads(raw) for raw in gateway.redis.hgetall(LOAD).values()]
    return sum(entry["endpoints"].get(endpoint.id, {}).get("waiting", 0) for entry in entries)


def test_a_request_waits_for_its_first_worker_and_signals_demand(gateway, client, worker, deploy, pool):
    endpoint = deploy()
    with gateway.redis.pubsub(ignore_subscribe_messages=True) as demand:
        demand.subscribe(DEMAND)
        wait_until(lambda: demand.get_message(timeout=0.1) is None)
        answer = pool.submit(post, client, endpoint, {"x": 1})
        wait_until(lambda: (demand.get_message(timeout=0.1) or {}).get("data") == endpoint.id.encode())
    wait_until(lambda: waiting(gateway, endpoint) == 1)
    assert not answer.done()
    endpoint.serve(worker())
    assert answer.result(10).json() == {"x": 1}
    wait_until(lambda: waiting(gateway, endpoint) == 0)
    post(client, endpoint)
    cold = f'brinery_cold_wait_seconds_count{{endpoint="{endpoint.name}",owner="ann"}} 1.0'
    assert cold in client.get("/metrics").text, "of the two, the first alone found no worker"


def test_demand_is_signalled_again_while_somebody_waits(gateway, client, worker, deploy, pool):
    endpoint = deploy()
    answer = pool.submit(post, client, endpoint)
    wait_until(lambda: waiting(gateway, endpoint) == 1)
    with gateway.redis.pubsub(ignore_subscribe_messages=True) as demand:  # the first signal has been missed
        demand.subscribe(DEMAND)
        wait_until(lambda: (demand.get_message(timeout=0.1) or {}).get("data") == endpoint.id.encode())
    endpoint.serve(worker())
    assert answer.result(10).status_code == 200


def test_a_wait_in_vain_ends_with_the_endpoints_state(client, deploy):
    endpoint = deploy(status=EndpointStatus.BUILDING, reason="Installing torch.")
    response = post(client, endpoint, **{"X-Brinery-Timeout-Seconds": "0.2"})
    assert response.status_code == 504
    assert "building" in response.json()["error"]["message"]
    assert "Installing torch." in response.json()["error"]["message"]


def test_a_failed_endpoint_answers_at_once_why(client, deploy, pool):
    failed = deploy(status=EndpointStatus.FAILED, reason="No such package.")
    response = post(client, failed)
    assert (response.status_code, response.json()["error"]["type"]) == (503, "deployment")
    assert "No such package." in response.json()["error"]["message"]
    fails_later = deploy()
    answer = pool.submit(post, client, fails_later)
    fails_later.serve(status=EndpointStatus.FAILED, reason="It broke.")
    assert "It broke." in answer.result(10).json()["error"]["message"]


def test_an_endpoint_that_is_deleted_lets_its_held_requests_go(gateway, client, deploy, pool):
    endpoint = deploy()
    answer = pool.submit(post, client, endpoint)
    wait_until(lambda: waiting(gateway, endpoint) == 1)
    endpoint.remove()
    assert answer.result(10).status_code == 404


def test_arguments_are_checked_before_a_cold_wait(client, deploy):
    endpoint = deploy(schema={"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]})
    response = post(client, endpoint, {"x": "one"})
    assert (response.status_code, response.json()["error"]["type"]) == (422, "invalid_request")
    assert "x" in response.json()["error"]["message"]


def test_held_requests_are_served_first_come_first_served(gateway, client, worker, deploy, pool):
    order = []

    async def note(seen, _writer):
        order.append(json.loads(seen.body)["n"])
        return reply(b"null")

    endpoint = deploy()
    answers = []
    for number in range(5):
        answers.append(pool.submit(post, client, endpoint, {"n": number}))
        wait_until(lambda wanted=number + 1: waiting(gateway, endpoint) == wanted)
    endpoint.serve(worker(answer=note))
    assert [answer.result(10).status_code for answer in answers] == [200] * 5
    assert order == list(range(5))


def test_above_the_bound_of_held_requests_the_gateway_says_when_to_come_back(gateway, client, worker, deploy):
    endpoint = deploy()

    async def fill():
        body = b"{}"
        head = (
            f"POST /v1/endpoints/{endpoint.name}/predict HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer "
            f"{gateway.key}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        callers = []
        for _ in range(MAX_HELD_REQUESTS):
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.settings.port)
            writer.write(head + body)
            callers.append((reader, writer))
        await asyncio.to_thread(wait_until, lambda: waiting(gateway, endpoint) == MAX_HELD_REQUESTS)
        refused = await asyncio.to_thread(post, client, endpoint)
        endpoint.serve(worker(), concurrency=16)
        answers = [await reader.readuntil(b"\r\n") for reader, _ in callers]
        for _, writer in callers:
            writer.close()
            await writer.wait_closed()
        return refused, answers

    refused, answers = asyncio.run(fill())
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "overloaded")
    assert int(refused.headers["retry-after"]) > 0
    assert answers == [b"HTTP/1.1 200 OK\r\n"] * MAX_HELD_REQUESTS


def test_a_busy_worker_is_no_failure_another_one_gets_the_request(client, worker, deploy):
    async def always_busy(_seen, _writer):
        return busy()

    full, free = worker("wrk_1", always_busy), worker("wrk_2")
    endpoint = deploy(full, free)
    assert post(client, endpoint, {"x": 1}).json() == {"x": 1}
    assert (len(full.seen), len(free.seen)) == (1, 1)


def test_a_request_comes_back_to_a_worker_that_was_busy_for_a_while(client, worker, deploy):
    async def busy_at_first(seen, _writer):
        return busy() if len(one.seen) < 4 else reply(seen.body)

    one = worker(answer=busy_at_first)
    endpoint = deploy(one)
    assert post(client, endpoint, {"x": 1}).json() == {"x": 1}
    assert len(one.seen) == 4


def test_a_worker_that_loads_its_bundle_again_is_waited_for(client, worker, deploy):
    async def loading_at_first(seen, _writer):
        loading = b'{"error": {"type": "unavailable", "message": "loading", "context": {}}}'
        return reply(loading, status=503) if len(one.seen) < 3 else reply(seen.body)

    one = worker(answer=loading_at_first)
    endpoint = deploy(one)
    response = client.post(f"/v1/endpoints/{endpoint.name}/predict", json={"x": 1})
    assert (response.status_code, response.json(), len(one.seen)) == (200, {"x": 1}, 3)


def test_a_users_own_429_is_an_answer(client, worker, deploy):
    async def limited(_seen, _writer):
        return reply(b'{"mine": "slow down"}', status=429)

    one = worker(answer=limited)
    response = post(client, deploy(one))
    assert (response.status_code, response.json()) == (429, {"mine": "slow down"})
    assert len(one.seen) == 1


def test_a_worker_that_refuses_connections_is_passed_over(client, worker, deploy):
    gone, there = worker("wrk_1"), worker("wrk_2")
    endpoint = deploy(gone, there)
    gone.close()
    for number in range(3):
        assert post(client, endpoint, {"n": number}).json() == {"n": number}
    assert len(there.seen) == 3


def test_a_request_survives_that_its_only_worker_is_gone(client, worker, deploy, pool, gateway):
    gone = worker("wrk_1")
    endpoint = deploy(gone)
    gone.close()
    answer = pool.submit(post, client, endpoint, {"x": 1})
    wait_until(lambda: waiting(gateway, endpoint) == 1)
    endpoint.serve(worker("wrk_2"))
    assert answer.result(10).json() == {"x": 1}


def test_a_worker_that_dies_with_the_request_is_an_error_and_no_second_run(client, worker, deploy):
    async def dies(_seen, _writer):
        return None

    dying, other = worker("wrk_1", dies), worker("wrk_2")
    response = post(client, deploy(dying, other))
    assert (response.status_code, response.json()["error"]["type"]) == (502, "worker")
    assert (len(dying.seen), len(other.seen)) == (1, 0)


def test_a_replaced_worker_gets_nothing_new_and_finishes_what_it_has(client, worker, deploy, pool):
    gate = threading.Event()

    async def slow(_seen, _writer):
        while not gate.is_set():
            await asyncio.sleep(0.01)
        return reply(b'"old"')

    old, new = worker("wrk_1", slow), worker("wrk_2")
    endpoint = deploy(old)
    running = pool.submit(post, client, endpoint)
    wait_until(lambda: old.running)
    endpoint.serve(new)
    assert post(client, endpoint, {"x": 1}).json() == {"x": 1}
    gate.set()
    assert running.result(10).json() == "old"


def test_a_table_entry_that_nobody_can_read_harms_no_other_endpoint(gateway, client, worker, deploy):
    broken = new_id("end")
    gateway.redis.hset("routing", broken, b'{"from": "a later version"}')
    gateway.redis.publish("routing", broken)
    assert post(client, deploy(worker()), {"x": 1}).json() == {"x": 1}
    gateway.redis.hdel("routing", broken)
