"""HTTP calls of workers over kept-alive connections: one attempt, its deadline, and stopping it from outside.

The standard library's client is used as it is: on this path it costs half of urllib3 and a fifth of httpx.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import select
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Final, Protocol
from urllib.parse import quote, urlsplit

import orjson

from brinery.errors import PayloadTooLargeError, UpstreamTimeoutError, WorkerError
from brinery_platform.forwarder.blame import Fate
from brinery_platform.routes import WorkerRoute

CONNECT_SECONDS: Final = 3.0
CONTROL_SECONDS: Final = 3.0
MAX_RESULT_BYTES: Final = 256 * 1024 * 1024
MAX_ERROR_BYTES: Final = 1024 * 1024
IDLE_CONNECTIONS: Final = 64
CHUNK_BYTES: Final = 256 * 1024
FATE_SECONDS: Final = 1.0
"""How long a supervisor may take to notice that its process has ended."""
FATE_LOOK_SECONDS: Final = 0.05


class Readable(Protocol):
    """What a request's body is read from."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes; empty at the end."""


class NotSentError(WorkerError):
    """The worker could not be reached; nothing was sent, so this was not an attempt."""


class BrokenError(WorkerError):
    """The worker ended its connection without an answer; whether and why its process ended is to be asked."""


class Attempt:
    """One call in progress, so that other threads can stop it.

    Args:
        request_id: The worker's name of it.
        timeout_seconds: From now to the last byte of the answer.
    """

    def __init__(self, request_id: str, timeout_seconds: float) -> None:
        self.request_id = request_id
        self.deadline = time.monotonic() + timeout_seconds
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._aborted = False

    @property
    def left_seconds(self) -> float:
        """Time until its deadline, at least a millisecond (0 would mean forever to a socket)."""
        return max(0.001, self.deadline - time.monotonic())

    @property
    def late(self) -> bool:
        """Whether its deadline has passed."""
        return time.monotonic() >= self.deadline

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop its clock while its own thread waits for somebody else than the worker."""
        left = self.deadline - time.monotonic()
        self.deadline = math.inf
        try:
            yield
        finally:
            self.deadline = time.monotonic() + left

    def abort(self) -> None:
        """Make its thread fail at once, wherever it waits."""
        with self._lock:
            self._aborted = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def attach(self, connected: socket.socket | None) -> None:
        """Note the socket that carries it; None when it no longer does.

        Raises:
            NotSentError: It was aborted before anything was sent.
        """
        with self._lock:
            if connected is not None and self._aborted:
                raise NotSentError
            self._socket = connected


class Reply:
    """A worker's answer whose body is still on its way."""

    def __init__(self, response: http.client.HTTPResponse, connected: socket.socket, attempt: Attempt) -> None:
        self.status = response.status
        self.content_type = response.headers.get("Content-Type", "")[:200]
        self._response = response
        self._socket = connected
        self._attempt = attempt
        self._bytes_left = MAX_RESULT_BYTES

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; empty at the end.

        Raises:
            PayloadTooLargeError: The body exceeds `MAX_RESULT_BYTES`.
        """
        with call_errors(self._attempt):
            self._socket.settimeout(self._attempt.left_seconds)
            data = self._response.read1(min(size, CHUNK_BYTES))
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            raise PayloadTooLargeError(
                f"The result exceeds {MAX_RESULT_BYTES >> 20} MiB; write it to a store and return a reference."
            )
        return data

    @property
    def finished(self) -> bool:
        """Whether the whole body was read and the connection may carry another request."""
        if self._response.length == 0:
            self._response.close()  # its own end; the connection stays open
        return self._response.isclosed() and not self._response.will_close

    def read_up_to(self, size: int) -> bytes:
        """Return the body's first `size` bytes, or all of it when it is shorter."""
        parts = []
        while size > 0 and (data := self.read(size)):
            parts.append(data)
            size -= len(data)
        return b"".join(parts)


class WorkerCalls:
    """Calls workers; for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[str, list[http.client.HTTPConnection]] = {}

    @contextlib.contextmanager
    def predict(
        self, worker: WorkerRoute, body: bytes | Readable, headers: Mapping[str, str], attempt: Attempt
    ) -> Iterator[Reply]:
        """POST a task's input to a worker; the answer's body is read inside the ``with``.

        Args:
            worker: Whose slot was acquired.
            body: The input; a file is sent with the ``Content-Length`` that `headers` name.
            headers: All headers of the request.
            attempt: Its deadline bounds sending, waiting and reading together.

        Raises:
            NotSentError: It could not be reached.
            BrokenError: It died, or answered no HTTP; whether the function ran is not known.
            UpstreamTimeoutError: The deadline passed; the slot may still work and is to be cancelled.
        """
        connection = self._connect(worker, attempt)
        reusable = False
        try:
            reply = _send(connection, body, headers, attempt)
            yield reply
            reusable = reply.finished
        finally:
            attempt.attach(None)
            if reusable:
                self._keep(worker.url, connection)
            else:
                connection.close()

    def forget(self, urls: frozenset[str]) -> None:
        """Close the idle connections to all workers but those at `urls`."""
        with self._lock:
            gone = [self._idle.pop(url) for url in list(self._idle) if url not in urls]
        for connection in (connection for connections in gone for connection in connections):
            connection.close()

    def cancel(self, worker: WorkerRoute, request_id: str, *, timed_out: bool = False) -> bool:
        """Ask a worker's supervisor to stop one request; False when it cannot be reached.

        Args:
            worker: Where it runs.
            request_id: Its name.
            timed_out: Whether its time is over, so that the worker's log does not say that somebody cancelled it.
        """
        return _control(worker, "POST", "/cancel", request_id, "&reason=timeout" if timed_out else "") is not None

    def fate(self, worker: WorkerRoute, request_id: str) -> Fate:
        """Ask a worker's supervisor what became of a request whose connection broke; takes up to `FATE_SECONDS`."""
        give_up_at = time.monotonic() + FATE_SECONDS
        while True:
            said = _control(worker, "GET", "/fate", request_id)
            if said is None:
                return Fate(fate="gone")
            try:
                fate = Fate(**orjson.loads(said))
            except (orjson.JSONDecodeError, TypeError):
                return Fate(fate="unknown")
            if fate.fate != "running" or time.monotonic() >= give_up_at:
                return fate
            time.sleep(FATE_LOOK_SECONDS)  # the connection ends a moment before the supervisor hears of it

    def _connect(self, worker: WorkerRoute, attempt: Attempt) -> http.client.HTTPConnection:
        """Return an open connection: an idle one that the worker has not closed meanwhile, or a new one."""
        while True:
            with self._lock:
                idle = self._idle.get(worker.url)
                connection = idle.pop() if idle else None
            if connection is None:
                break
            if _is_open(connection):
                attempt.attach(connection.sock)
                return connection
            connection.close()
        parts = urlsplit(worker.url)
        connection = http.client.HTTPConnection(
            parts.hostname or "", parts.port, timeout=min(CONNECT_SECONDS, attempt.left_seconds)
        )
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise NotSentError(f"The worker could not be reached ({error}).", worker_id=worker.id) from error
        attempt.attach(connection.sock)
        return connection

    def _keep(self, url: str, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            idle = self._idle.setdefault(url, [])
            if len(idle) < IDLE_CONNECTIONS:
                idle.append(connection)
                return
        connection.close()


@contextlib.contextmanager
def call_errors(attempt: Attempt) -> Iterator[None]:
    """Turn what the HTTP client raises into our errors."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        if attempt.late or isinstance(error, TimeoutError):
            raise UpstreamTimeoutError(
                "The function did not answer within its timeout; raise timeout_seconds or make it faster.",
                request_id=attempt.request_id,
            ) from error
        raise BrokenError(
            f"The worker ended its connection ({type(error).__name__}) before it had answered; see its logs.",
            request_id=attempt.request_id,
        ) from error


def _send(
    connection: http.client.HTTPConnection, body: bytes | Readable, headers: Mapping[str, str], attempt: Attempt
) -> Reply:
    connected = connection.sock
    with call_errors(attempt):
        connected.settimeout(attempt.left_seconds)
        # A worker may answer (busy, too large) and close before it has read a large body: then its answer counts.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request("POST", "/predict", body=body, headers=dict(headers))
        connected.settimeout(attempt.left_seconds)
        return Reply(connection.getresponse(), connected, attempt)


def _control(worker: WorkerRoute, method: str, path: str, request_id: str, more: str = "") -> bytes | None:
    """Ask a worker's supervisor about one request; None when there is no answer."""
    parts = urlsplit(worker.control_url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=CONTROL_SECONDS)
    try:
        connection.request(method, f"{path}?request_id={quote(request_id, safe='')}{more}", body=b"")
        answer = connection.getresponse()
        return answer.read() if answer.status == http.HTTPStatus.OK else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _is_open(connection: http.client.HTTPConnection) -> bool:
    """Return whether an idle connection is still open: a closed one is readable, with nothing to read."""
    if connection.sock is None:
        return False
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return not poll.poll(0)
