"""Workers that answer what they must not."""

from __future__ import annotations

import httpx
import pytest
from stub_worker import reply

from brinery_platform.gateway.proxy import MAX_REPLY_BYTES


def answering(raw):
    async def answer(_seen, _writer):
        return raw

    return answer


def post(client, endpoint, **headers):
    return client.post(f"/v1/endpoints/{endpoint.name}/predict", json={}, headers=headers)


def test_headers_of_a_worker_stay_behind(client, worker, deploy):
    extra = "Set-Cookie: session=1\r\nX-Frame-Options: ALLOWALL\r\nAccess-Control-Allow-Origin: *\r\nServer: evil\r\n"
    response = post(client, deploy(worker(answer=answering(reply(b"1", extra=extra)))))
    assert response.content == b"1"
    assert set(response.headers) == {
        "content-type",
        "content-length",
        "x-brinery-request-id",
        "x-content-type-options",
        "date",
    }


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ("text/html", "application/octet-stream"),
        ("Text/HTML; charset=utf-8", "application/octet-stream"),
        ("application/xhtml+xml", "application/octet-stream"),
        ("image/svg+xml", "application/octet-stream"),
        ("text/javascript", "application/octet-stream"),
        ("multipart/x-mixed-replace; boundary=text/html", "application/octet-stream"),
        ("application/json; charset=utf-8", "application/json"),
        ("text/plain; charset=utf-7", "text/plain; charset=utf-8"),
    ],
)
def test_only_content_types_that_no_browser_runs_pass(client, worker, deploy, given, passed):
    endpoint = deploy(worker(answer=answering(reply(b"<script>1</script>", content_type=given))))
    response = post(client, endpoint)
    assert response.headers["content-type"] == passed
    assert response.headers["x-content-type-options"] == "nosniff"


def test_a_redirect_of_a_worker_is_not_followed_and_not_passed_on(client, worker, deploy):
    target = worker("wrk_2")
    moved = reply(b"", status=307, extra=f"Location: {target.route.url}/predict\r\n")
    response = post(client, deploy(worker("wrk_1", answering(moved))))
    assert (response.status_code, response.json()["error"]["type"]) == (502, "worker")
    assert "location" not in response.headers
    assert not target.seen


@pytest.mark.parametrize(
    "raw",
    [
        b"this is no HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nContent-Type: application/json\r\n\r\n12",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n",
    ],
)
def test_nonsense_is_a_502(client, worker, deploy, raw):
    async def answer(_seen, writer):
        writer.write(raw)
        await writer.drain()

    response = post(client, deploy(worker(answer=answer)))
    assert (response.status_code, response.json()["error"]["type"]) == (502, "worker")


def test_a_reply_that_is_announced_too_large_is_refused(client, worker, deploy):
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {MAX_REPLY_BYTES + 1}\r\n\r\n"
    response = post(client, deploy(worker(answer=answering(head.encode()))))
    assert (response.status_code, response.json()["error"]["type"]) == (502, "worker")


def test_a_reply_that_never_ends_is_cut_off(client, worker, deploy):
    async def endless(_seen, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"100000\r\n" + b"x" * 2**20 + b"\r\n"
        while True:
            writer.write(piece)
            await writer.drain()

    endpoint = deploy(worker(answer=endless))
    received = 0
    with (
        pytest.raises(httpx.RemoteProtocolError),
        client.stream("POST", f"/v1/endpoints/{endpoint.name}/predict", json={}) as response,
    ):
        for piece in response.iter_raw():
            received += len(piece)
    assert received <= MAX_REPLY_BYTES + 2**20


def test_a_large_reply_passes_whole(client, worker, deploy):
    large = b"y" * (5 * 2**20)
    response = post(client, deploy(worker(answer=answering(reply(large, content_type="application/octet-stream")))))
    assert response.content == large
    assert response.headers["content-length"] == str(len(large))
