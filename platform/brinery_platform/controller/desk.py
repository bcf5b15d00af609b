"""The controller's desk: what runs and what it says, over HTTP on loopback, for gateways and forwarders.

They have no Docker socket, which would make them root of the machine; the desk answers their two questions, to whoever
has its token. Its address is in Redis, see `routes.DESK`. ``/healthz`` and ``/readyz`` are for everybody here.
"""

from __future__ import annotations

import dataclasses
import hmac
import secrets
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import orjson
import structlog

from brinery.errors import BrineryError, ConflictError
from brinery_platform.routes import DESK_BEAT_SECONDS, DESK_END, DeskAddress
from brinery_platform.runtimes.base import LogMark, Runtime, Stamped

HOST: Final = "127.0.0.1"
MOST_CONNECTIONS: Final = 512
MOST_FOLLOWERS: Final = 256
MOST_TAIL: Final = 10_000
MOST_LINE_CHARACTERS: Final = 16_384
STUCK_SECONDS: Final = 10.0
"""How long a client may neither send its request nor take what it asked for."""

log = structlog.get_logger()

Health = Callable[[], str]
"""Returns what is wrong, ``""`` for nothing."""


class Desk:
    """Serves until it is closed.

    Args:
        runtime: Whose workers.
        healthy: Whether the controller's process works.
        ready: Whether it leads, or waits behind one who does.
        port: Where on loopback; 0 for any.

    Raises:
        ConflictError: The port is taken.
    """

    def __init__(self, runtime: Runtime, *, healthy: Health, ready: Health, port: int = 0) -> None:
        self.runtime = runtime
        self.healthy = healthy
        self.ready = ready
        self.closing = threading.Event()
        self._followers: dict[_Reply, Stamped] = {}
        self._lock = threading.Lock()
        token = secrets.token_urlsafe(32)
        try:
            self._server = _Server((HOST, port), _handler_of(self, token))
        except OSError as error:
            raise ConflictError(
                f"The controller's desk cannot listen on {HOST}:{port} ({error.strerror}); stop what is there, or set "
                "BRINERY_DESK_PORT."
            ) from None
        self.address = DeskAddress(f"http://{HOST}:{self._server.server_address[1]}", token)
        self._threads = [
            threading.Thread(target=self._server.serve_forever, name="desk", daemon=True),
            threading.Thread(target=self._beat, name="desk-beat", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Let every follower go: they turn to the next leader's desk."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            for lines in self._followers.values():
                lines.end()
        for thread in self._threads:
            thread.join()

    @contextmanager
    def followed(self, reply: _Reply, lines: Stamped) -> Iterator[bool]:
        """Have the beat sent to a follower; yield whether there is room for another one."""
        with self._lock:
            room = len(self._followers) < MOST_FOLLOWERS and not self.closing.is_set()
            if room:
                self._followers[reply] = lines
        try:
            yield room
        finally:
            with self._lock:
                self._followers.pop(reply, None)

    def _beat(self) -> None:
        """Tell followers that the desk lives, and thereby learn of those who have gone."""
        while not self.closing.wait(DESK_BEAT_SECONDS):
            with self._lock:
                followers = list(self._followers.items())
            for reply, lines in followers:
                if not reply.beat():
                    lines.end()


class _Server(ThreadingHTTPServer):
    """One thread for each connection, of a bounded number."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, place: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._room = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(place, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the library's verb
        log.debug("desk.request_failed", exc_info=True)


class _Reply:
    """One reply in chunks, written by the thread that serves it and, in between, by the beat."""

    def __init__(self, connection: socket.socket, write: Callable[[bytes], Any]) -> None:
        self._connection = connection
        self._write = write
        self._lock = threading.Lock()

    def send(self, entry: Any) -> None:
        data = orjson.dumps(entry) + b"\n"
        with self._lock:
            self._write(b"%x\r\n%b\r\n" % (len(data), data))

    def finish(self) -> None:
        with self._lock:
            self._write(b"0\r\n\r\n")

    def beat(self) -> bool:
        """Send a sign of life, unless much else waits to be sent; return False when nobody is there any more."""
        try:
            _, writable, _ = select.select((), (self._connection,), (), 0)
            if writable and not self._lock.locked():
                self.send(None)
        except (OSError, ValueError):  # ValueError: it was closed in this moment
            return False
        return True


def _handler_of(desk: Desk, token: str) -> type[BaseHTTPRequestHandler]:
    expected = f"Bearer {token}".encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = STUCK_SECONDS
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if parts.path in {"/healthz", "/readyz"}:
                wrong = desk.healthy() if parts.path == "/healthz" else desk.healthy() or desk.ready()
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE if wrong else HTTPStatus.OK, {"status": wrong or "ok"})
            elif not hmac.compare_digest(self.headers.get("authorization", "").encode(), expected):
                self._answer(HTTPStatus.UNAUTHORIZED, {"status": "this needs the desk's token"})
            else:
                self._serve(parts.path.split("/"), parse_qs(parts.query))

        def _serve(self, path: list[str], query: dict[str, list[str]]) -> None:
            try:
                match path:
                    case ["", "v1", "running"]:
                        running = [dataclasses.asdict(one) for one in desk.runtime.list()]
                        self._answer(HTTPStatus.OK, running)
                    case ["", "v1", "logs", running_id]:
                        self._logs(running_id, {name: float(values[-1]) for name, values in query.items()})
                    case _:
                        self._answer(HTTPStatus.NOT_FOUND, {"status": "there is no such thing here"})
            except ValueError:
                self._answer(HTTPStatus.BAD_REQUEST, {"status": "no number"})
            except BrineryError as error:
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, {"status": error.message})

        def _logs(self, running_id: str, asked: dict[str, float]) -> None:
            since = LogMark(asked["at"], int(asked.get("size", 0))) if "at" in asked else None
            tail, follow = min(int(asked.get("tail", 0)), MOST_TAIL), bool(asked.get("follow"))
            lines = desk.runtime.stamped(running_id, tail=tail, follow=follow, since=since)
            reply = _Reply(self.connection, self.wfile.write)
            try:
                with desk.followed(reply, lines) as room:
                    if not room:
                        self._answer(HTTPStatus.SERVICE_UNAVAILABLE, {"status": "too many follow logs already"})
                        return
                    self._pass_on(reply, lines)
            finally:
                lines.close()

        def _pass_on(self, reply: _Reply, lines: Stamped) -> None:
            """Send each line; without the last word the reader knows that it has not heard all, and asks again."""
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "application/x-ndjson")
            self.send_header("Transfer-Encoding", "chunked")
            self.send_header("Connection", "close")  # said, so that nobody asks over it again while it closes
            self.end_headers()
            with suppress(OSError, BrineryError):  # the reader has gone, or the engine
                for at, line in lines:
                    reply.send([at, line if len(line) <= MOST_LINE_CHARACTERS else f"{line[:MOST_LINE_CHARACTERS]}…"])
                if not desk.closing.is_set():
                    reply.send(DESK_END)
                    reply.finish()

        def _answer(self, status: HTTPStatus, content: Any) -> None:
            body = orjson.dumps(content)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: Any) -> None:
            """Say nothing of each request."""

    return Handler
