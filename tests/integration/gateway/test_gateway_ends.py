"""What a caller hears of a worker that ended its connection, and who is said to have answered an error."""

from __future__ import annotations

import pytest
import redis
from stub_worker import events_of, reply

from brinery_platform.condemned import Condemned, End
from brinery_platform.fates import MAX_REASON_TEXT

NOBODY_KNOWS = "The connection to the worker broke before its reply was complete; the call may have run."
ID = {"X-Brinery-Request-Id": "req_ours"}


async def hangs_up(_seen, _writer):
    return None


async def hangs_up_in_the_middle(seen, writer):
    kind = "text/event-stream" if seen.target.startswith("/stream") else "application/octet-stream"
    writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    writer.write(b"9\r\ndata: 1\n\n\r\n")
    await writer.drain()


def post(client, endpoint, **headers):
    return client.post(f"/v1/endpoints/{endpoint.name}/predict", json={}, headers=headers)


@pytest.mark.parametrize(
    ("fate", "status", "kind", "text"),
    [
        (
            {"fate": "crashed", "reason": "killed: out of memory at 512 MiB", "others": 0},
            502,
            "worker",
            "The worker died while it ran this call: killed: out of memory at 512 MiB.",
        ),
        (
            {"fate": "neighbour", "reason": "request req_b was cancelled", "others": 1},
            502,
            "worker",
            "The worker's process was ended while it ran this call, but not for its sake: request req_b was cancelled.",
        ),
        (
            {"fate": "stopped", "reason": "request req_ours ran out of time", "others": 0},
            504,
            "upstream_timeout",
            "The function ran longer than its timeout and was stopped by force (request req_ours ran out of time).",
        ),
        ({"fate": "unknown", "reason": "", "others": 0}, 502, "worker", NOBODY_KNOWS),
        ({"fate": "running", "reason": "", "others": 0}, 502, "worker", NOBODY_KNOWS),
        ({"fate": "crashed", "reason": 7, "others": 0}, 502, "worker", NOBODY_KNOWS),
        (["crashed"], 502, "worker", NOBODY_KNOWS),
    ],
)
def test_the_supervisor_is_asked_what_became_of_the_call(client, worker, deploy, fate, status, kind, text):
    stub = worker(answer=hangs_up)
    stub.fate = fate
    response = post(client, deploy(stub))
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (status, kind)
    assert error["message"].startswith(text)
    assert set(stub.fates_asked) == {response.headers["x-brinery-request-id"]}
    assert len(stub.seen) == 1, "it is not run again"


def test_a_reason_without_an_end_is_cut(client, worker, deploy):
    stub = worker(answer=hangs_up)
    stub.fate = {"fate": "crashed", "reason": "x" * 100_000, "others": 0}
    assert len(post(client, deploy(stub)).json()["error"]["message"]) < MAX_REASON_TEXT + 100


def test_a_supervisor_that_is_gone_too_is_not_waited_for(client, worker, deploy):
    async def dies(_seen, _writer):
        stub.leave()

    stub = worker(answer=dies)
    response = post(client, deploy(stub))
    assert response.status_code == 502
    assert response.json()["error"]["message"].startswith(NOBODY_KNOWS)


def test_the_controller_says_why_an_image_ended(client, worker, deploy, valkey):
    async def dies(_seen, _writer):
        Condemned(redis.Redis.from_url(valkey.connection_url)).note_end(
            "wrk_fat", End(reason="killed: out of memory at 512 MiB")
        )

    error = post(client, deploy(worker("wrk_fat", dies, supervised=False))).json()["error"]
    assert error["message"] == "The worker died while it ran this call: killed: out of memory at 512 MiB."


def test_a_call_that_ended_with_an_image_for_the_sake_of_another_hears_so(client, worker, deploy, valkey):
    async def dies(_seen, _writer):
        end = End(reason="call req_b ran longer than its timeout", request_id="req_b")
        Condemned(redis.Redis.from_url(valkey.connection_url)).note_end("wrk_shared", end)

    error = post(client, deploy(worker("wrk_shared", dies, supervised=False))).json()["error"]
    assert "not for its sake: call req_b ran longer than its timeout" in error["message"]


def test_an_image_of_which_nobody_knows_more_is_an_error_after_a_while(client, worker, deploy):
    response = post(client, deploy(worker("wrk_odd", hangs_up, supervised=False)))
    assert (response.status_code, response.json()["error"]["type"]) == (502, "worker")
    assert response.json()["error"]["message"].startswith(NOBODY_KNOWS)


def test_a_stream_that_breaks_says_why_in_its_last_event(client, worker, deploy):
    stub = worker(answer=hangs_up_in_the_middle)
    stub.fate = {"fate": "crashed", "reason": "signal 11 (SIGSEGV)", "others": 0}
    events = events_of(post(client, deploy(stub), Accept="text/event-stream").text)
    assert events[0] == ("message", 1)
    assert events[-1][0] == "error"
    assert "signal 11 (SIGSEGV)" in events[-1][1]["error"]["message"]


@pytest.mark.parametrize("supervised", [True, False])
def test_an_error_of_a_worker_is_marked_and_what_went_well_is_not(client, worker, deploy, supervised):
    async def answer(seen, _writer):
        return reply(b"model not loaded", status=500, content_type="text/plain") if seen.body == b"{}" else reply(b"1")

    endpoint = deploy(worker(answer=answer, supervised=supervised))
    failed = post(client, endpoint)
    assert (failed.status_code, failed.text) == (500, "model not loaded")
    assert failed.headers["x-brinery-answered-by"] == "worker"
    fine = client.post(f"/v1/endpoints/{endpoint.name}/predict", json={"x": 1})
    assert "x-brinery-answered-by" not in fine.headers
    unknown = client.post("/v1/endpoints/nothing/predict", json={})
    assert (unknown.status_code, "x-brinery-answered-by" in unknown.headers) == (404, False)
