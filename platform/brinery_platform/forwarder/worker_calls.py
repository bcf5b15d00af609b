"""HTTP calls of workers over kept-alive connections.

The standard library's client is used as it is: on this path it costs half of urllib3 and a fifth of httpx.
"""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Final, Protocol
from urllib.parse import quote, urlsplit

import redis

from brinery.errors import PayloadTooLargeError, UpstreamTimeoutError
from brinery_platform.fates import FATE_LOOK_SECONDS, FATE_SECONDS, Fate, fate_from_supervisor
from brinery_platform.forwarder.attempt import Attempt, BrokenError, NotSentError
from brinery_platform.forwarder.image_calls import ImageCalls
from brinery_platform.routes import WorkerRoute

CONNECT_SECONDS: Final = 3.0
CONTROL_SECONDS: Final = 3.0
MAX_RESULT_BYTES: Final = 256 * 1024 * 1024
MAX_ERROR_BYTES: Final = 1024 * 1024
IDLE_CONNECTIONS: Final = 64
CHUNK_BYTES: Final = 256 * 1024


class Readable(Protocol):
    """What a request's body is read from."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes; empty at the end."""


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
            BrokenError: The worker ended the connection before the end of the body.
            UpstreamTimeoutError: The attempt's time is over.
            PayloadTooLargeError: The body exceeds `MAX_RESULT_BYTES`.
        """
        with call_errors(self._attempt):
            if self._response.length == 0:
                return b""
            self._attempt.bound(self._socket)
            data = self._response.read1(min(size, CHUNK_BYTES))
            if not data and self._response.length:  # the library takes an early end for the end
                raise http.client.IncompleteRead(b"", self._response.length)
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
    """Calls workers; for threads.

    Args:
        client: The platform's Redis.
        endpoint_id: Whose workers they are.
    """

    def __init__(self, client: redis.Redis, endpoint_id: str) -> None:
        self._images = ImageCalls(client, endpoint_id)
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
            if not worker.control_url:
                self._images.begin(worker, attempt)
            reply = _send(connection, worker.predict_path, body, headers, attempt)
            yield reply
            reusable = reply.finished
        finally:
            attempt.attach(None)
            if not worker.control_url:
                self._images.end(attempt)
            if reusable and worker.control_url:  # nobody knows how soon the server of an image closes an idle one
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
        """Have one request stopped, by the worker's supervisor if it has one; False when that cannot be reached.

        Args:
            worker: Where it runs.
            request_id: Its name.
            timed_out: Whether its time is over, so that the worker's log does not say that somebody cancelled it.
        """
        if not worker.control_url:
            return self._images.cancel(worker, request_id, timed_out=timed_out)
        return _control(worker, "POST", "/cancel", request_id, "&reason=timeout" if timed_out else "") is not None

    def fate(self, worker: WorkerRoute, request_id: str) -> Fate:
        """Return what became of a request whose connection broke; the supervisor has up to `FATE_SECONDS` to say it."""
        if not worker.control_url:
            return self._images.fate(worker, request_id)
        give_up_at = time.monotonic() + FATE_SECONDS
        while True:
            said = _control(worker, "GET", "/fate", request_id)
            if said is None:
                return Fate(fate="gone")
            fate = fate_from_supervisor(said)
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
    connection: http.client.HTTPConnection,
    path: str,
    body: bytes | Readable,
    headers: Mapping[str, str],
    attempt: Attempt,
) -> Reply:
    connected = connection.sock
    with call_errors(attempt):
        attempt.bound(connected)
        # A worker may answer (busy, too large) and close before it has read a large body: then its answer counts.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request("POST", path, body=body, headers=dict(headers))
        attempt.bound(connected)
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
