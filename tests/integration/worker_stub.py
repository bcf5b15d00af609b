"""A worker of the standard library that speaks the worker's contract and does what its input says."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from brinery.errors import RemoteError, WorkerBusyError
from brinery.spec import EndpointSpec, EndpointStatus
from brinery_platform.routes import ROUTING, EndpointRoute, WorkerRoute


class WorkerStub:
    """Answers ``{"echo": …}`` with its value; the other keys of an input say how it behaves otherwise.

    ``sleep``: seconds to wait first, cancellable. ``raise``: a message to raise. ``crash``: how many attempts of the
    task end without an answer. ``busy``: how many requests are refused as busy first. ``size``: bytes of the result.
    ``cut``: how many attempts end in the middle of it. ``says``: the answer's body as it is.
    """

    def __init__(self) -> None:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def do_POST(self) -> None:
                stub.handle(self)

            def log_message(self, *_arguments) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.calls: list[dict[str, str]] = []
        self.cancels: list[str] = []
        self.busy_left: dict[str, int] = {}
        self.stop = {}
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        url = urlsplit(request.path)
        if url.path == "/cancel":
            name = parse_qs(url.query)["request_id"][0]
            self.cancels.append(name)
            known = name in self.stop
            self.stop.setdefault(name, threading.Event()).set()
            return answer(request, 200, {"cancelled": known, "how": "exception" if known else "gone"})
        name = request.headers["X-Brinery-Request-Id"]
        self.calls.append({**request.headers})
        wanted = json.loads(body)
        busy = self.busy_left.setdefault(request.headers["X-Brinery-Task-Id"], wanted.get("busy", 0))
        if busy:
            self.busy_left[request.headers["X-Brinery-Task-Id"]] = busy - 1
            return answer(request, 429, WorkerBusyError().to_json())
        if int(request.headers["X-Brinery-Attempt"]) <= wanted.get("crash", 0):
            request.close_connection = True
            return request.connection.shutdown(socket.SHUT_RDWR)
        stopped = self.stop.setdefault(name, threading.Event())
        if stopped.wait(wanted.get("sleep", 0)):
            return answer(request, 500, RemoteError("stopped", exception_type="Cancelled").to_json())
        if "raise" in wanted:
            error = RemoteError(wanted["raise"], exception_type="ValueError", traceback="Traceback …")
            return answer(request, 500, error.to_json())
        if int(request.headers["X-Brinery-Attempt"]) <= wanted.get("cut", 0):
            send(request, 200, b'"' + b"x" * wanted["size"], missing=1)
            return request.connection.shutdown(socket.SHUT_RDWR)
        if "says" in wanted:
            return send(request, 200, wanted["says"].encode())
        if "size" in wanted:
            return answer(request, 200, "x" * wanted["size"])
        return answer(request, 200, wanted.get("echo"))


def answer(request: BaseHTTPRequestHandler, status: int, data: object) -> None:
    send(request, status, json.dumps(data).encode())


def send(request: BaseHTTPRequestHandler, status: int, body: bytes, *, missing: int = 0) -> None:
    """Answer with `body`, which is said to have `missing` more bytes than it has."""
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body) + missing))
    request.end_headers()
    request.wfile.write(body)
    request.wfile.flush()


@contextmanager
def worker_stub() -> Iterator[WorkerStub]:
    stub = WorkerStub()
    stub.thread.start()
    try:
        yield stub
    finally:
        stub.server.shutdown()
        stub.server.server_close()
        stub.thread.join()


def write_route(client, endpoint_id: str, *workers: str, concurrency: int = 4) -> None:
    """Write an endpoint's route as the controller does; `workers` are base URLs."""
    route = EndpointRoute(
        id=endpoint_id,
        owner="ann",
        status=EndpointStatus.READY,
        reason="",
        version=1,
        spec=EndpointSpec(name="stub", bundle_id="bun_1", concurrency=concurrency),
        workers=tuple(WorkerRoute(id=f"wrk_{url}", url=url, control_url=url) for url in workers),
    )
    client.hset(ROUTING, endpoint_id, route.dumps())
    client.publish(ROUTING, endpoint_id)
