"""Synchronous calls through a real gateway: there and back, streams, time limits, clients that hang up."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest
from stub_worker import events_of, reply, wait_until

from brinery.spec import CONTENT_PICKLE, MAX_BODY_BYTES


def test_a_call_comes_back_as_the_worker_gave_it(client, worker, deploy):
    one = worker()
    endpoint = deploy(one)
    response = client.post(f"/v1/endpoints/{endpoint.name}/predict", json={"x": "größer"})
    assert (response.status_code, response.json()) == (200, {"x": "größer"})
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["x-brinery-request-id"] == one.seen[0].headers["x-brinery-request-id"]
    assert "authorization" not in one.seen[0].headers


def test_bytes_of_any_size_and_type_pass_untouched(client, worker, deploy):
    async def pickled(seen, _writer):
        return reply(seen.body, content_type=CONTENT_PICKLE)

    endpoint = deploy(worker(answer=pickled))
    for body in (b"", bytes(range(256)), b"\x80" * (3 * 2**20)):
        response = client.post(
            f"/v1/endpoints/{endpoint.name}/predict", content=body, headers={"Content-Type": CONTENT_PICKLE}
        )
        assert response.content == body
        assert response.headers["content-type"] == CONTENT_PICKLE


def test_a_body_above_the_limit_is_refused_before_it_is_read(client, worker, deploy):
    one = worker()
    endpoint = deploy(one)
    response = client.post(f"/v1/endpoints/{endpoint.name}/predict", content=b"x" * (MAX_BODY_BYTES + 1))
    assert (response.status_code, response.json()["error"]["type"]) == (413, "payload_too_large")

    def pieces():
        for _ in range(MAX_BODY_BYTES // 2**20 + 1):
            yield b"x" * 2**20

    response = client.post(f"/v1/endpoints/{endpoint.name}/predict", content=pieces())
    assert response.status_code == 413
    assert not one.seen


def test_the_least_busy_worker_is_picked(client, worker, deploy):
    gate = threading.Event()

    async def slow(_seen, _writer):
        while not gate.is_set():
            await asyncio.sleep(0.01)
        return reply(b'"slow"')

    first, second = worker("wrk_1", slow), worker("wrk_2")
    endpoint = deploy(first, second, concurrency=4)
    caller = threading.Thread(target=client.post, args=(f"/v1/endpoints/{endpoint.name}/predict",), kwargs={"json": {}})
    caller.start()
    wait_until(lambda: first.running or second.running)
    busy_one, free_one = (first, second) if first.running else (second, first)
    assert busy_one is first
    for _ in range(3):
        assert client.post(f"/v1/endpoints/{endpoint.name}/predict", json={}).status_code == 200
    gate.set()
    caller.join()
    assert (len(busy_one.seen), len(free_one.seen)) == (1, 3)


def test_a_users_exception_passes_with_its_status(client, worker, deploy):
    body = b'{"error": {"type": "remote", "message": "no", "context": {"exception_type": "ValueError"}}}'

    async def raises(_seen, _writer):
        return reply(body, status=500)

    endpoint = deploy(worker(answer=raises))
    response = client.post(f"/v1/endpoints/{endpoint.name}/predict", json={})
    assert (response.status_code, response.content) == (500, body)


def test_a_call_that_takes_too_long_is_stopped_and_answered_504(client, worker, deploy):
    async def never(_seen, _writer):
        await asyncio.sleep(60)

    one = worker(answer=never)
    endpoint = deploy(one, timeout_seconds=30)
    response = client.post(
        f"/v1/endpoints/{endpoint.name}/predict", json={}, headers={"X-Brinery-Timeout-Seconds": "0.2"}
    )
    assert (response.status_code, response.json()["error"]["type"]) == (504, "upstream_timeout")
    wait_until(lambda: one.cancelled)
    assert one.cancelled == [response.headers["x-brinery-request-id"]]


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "soon"])
def test_a_time_limit_that_makes_no_sense_is_refused(client, worker, deploy, given):
    endpoint = deploy(worker())
    response = client.post(
        f"/v1/endpoints/{endpoint.name}/predict", json={}, headers={"X-Brinery-Timeout-Seconds": given}
    )
    assert (response.status_code, response.json()["error"]["type"]) == (422, "invalid_request")


def test_a_client_that_hangs_up_stops_its_call_and_frees_the_slot(gateway, client, worker, deploy):
    async def first_never(seen, _writer):
        if b"stay" in seen.body:
            await asyncio.sleep(60)
        return reply(b'"free"')

    one = worker(answer=first_never)
    endpoint = deploy(one, concurrency=1)
    body = b'{"x": "stay"}'
    with socket.create_connection(("127.0.0.1", gateway.settings.port)) as caller:
        caller.sendall(
            f"POST /v1/endpoints/{endpoint.name}/predict HTTP/1.1\r\nHost: here\r\n"
            f"Authorization: Bearer {gateway.key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        wait_until(lambda: one.running)
    wait_until(lambda: one.cancelled)
    assert client.post(f"/v1/endpoints/{endpoint.name}/predict", json={}).json() == "free"
    counted = f'brinery_requests_total{{endpoint="{endpoint.name}",owner="ann",status="499"}} 1.0'
    assert counted in client.get("/metrics").text


def test_a_stream_passes_event_by_event(client, worker, deploy):
    gate = threading.Event()

    async def stream(seen, writer):
        assert seen.target == "/stream"
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"9\r\ndata: 1\n\n\r\n"
        )
        await writer.drain()
        while not gate.is_set():
            await asyncio.sleep(0.01)
        rest = b"data: 2\n\nevent: done\ndata: {}\n\n"
        return b"%x\r\n%s\r\n0\r\n\r\n" % (len(rest), rest)

    endpoint = deploy(worker(answer=stream))
    with client.stream(
        "POST", f"/v1/endpoints/{endpoint.name}/predict", json={}, headers={"Accept": "text/event-stream"}
    ) as response:
        assert response.headers["content-type"] == "text/event-stream"
        pieces = response.iter_text()
        first = next(pieces)
        assert events_of(first) == [("message", 1)]  # it is here although the worker has not gone on
        gate.set()
        assert events_of("".join(pieces)) == [("message", 2), ("done", {})]


def test_a_stream_that_breaks_or_takes_too_long_ends_with_an_error_event(client, worker, deploy):
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n"
    )

    async def breaks(seen, writer):
        writer.write(head)
        await writer.drain()
        if b"stay" in seen.body:
            await asyncio.sleep(60)

    one = worker(answer=breaks)
    endpoint = deploy(one)
    for body, limit, kind in (({}, "30", "worker"), ({"x": "stay"}, "0.5", "upstream_timeout")):
        response = client.post(
            f"/v1/endpoints/{endpoint.name}/predict",
            json=body,
            headers={"Accept": "text/event-stream", "X-Brinery-Timeout-Seconds": limit},
        )
        (_, first), (event, error) = events_of(response.text)
        assert (first, event, error["error"]["type"]) == (1, "error", kind)
    wait_until(lambda: one.cancelled)


def test_a_call_with_another_method_is_refused(client, worker, deploy):
    endpoint = deploy(worker())
    response = client.get(f"/v1/endpoints/{endpoint.name}/predict")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert response.json()["error"]["message"]


def test_many_calls_at_once_all_come_back_and_never_exceed_a_workers_slots(client, worker, deploy):
    async def brief(seen, _writer):
        await asyncio.sleep(0.02)
        return reply(seen.body)

    workers = [worker(f"wrk_{number}", brief) for number in range(2)]
    endpoint = deploy(*workers, concurrency=2)
    answers = []

    def call(number):
        answers.append(client.post(f"/v1/endpoints/{endpoint.name}/predict", json={"n": number}).json()["n"])

    callers = [threading.Thread(target=call, args=(number,)) for number in range(40)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sorted(answers) == list(range(40))
    assert max(one.most_running for one in workers) == 2
