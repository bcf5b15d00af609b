"""Kept-alive connections for threads, by the standard library's HTTP client: a fifth of the CPU that httpx takes."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import select
import threading
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from brinery.errors import InvalidRequestError
from brinery.routes import CONNECT_TIMEOUT_SECONDS, UPLOAD_TIMEOUT_SECONDS, Request
from brinery.transport import KEEPALIVE_SECONDS, MAX_CONNECTIONS, MAX_IDLE, lost, nobody, socket_options, tls, too_late

PIECE_BYTES: Final = 64 * 1024
"""Up to here a body goes out together with its head; a larger one in pieces, so that only silence is a timeout."""


class Reply:
    """An answer that was read to its end.

    Args:
        status_code: HTTP status.
        headers: Their names in lower case.
        content: The body.
    """

    __slots__ = ("content", "headers", "status_code")

    def __init__(self, status_code: int, headers: Mapping[str, str], content: bytes) -> None:
        self.status_code = status_code
        self.headers = headers
        self.content = content

    def json(self) -> Any:
        """Return the body's JSON value.

        Raises:
            ValueError: It is no JSON.
        """
        return json.loads(self.content)


class Connections:
    """The connections of one process to one gateway; threads may share it.

    Args:
        url: Base URL of the gateway.
        headers: Sent with every request.
    """

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        self._url = url
        self._tls = tls(used=True) if parts.scheme == "https" else None
        self._host, self._port = parts.hostname or "", parts.port
        self._prefix = parts.path.rstrip("/")
        self._headers = dict(headers)
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []
        self._closed = False
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def send(self, request: Request) -> Reply:
        """Send a request and return its whole answer, whatever its status.

        Raises:
            UnavailableError: Nothing answers, or the connection was lost on the way.
            UpstreamTimeoutError: No answer came in time.
            InvalidRequestError: A header holds what HTTP cannot carry.
        """
        with self._room:
            connection = self._take() or self._connect()
            reusable = False
            try:
                reply, reusable = self._exchange(connection, request)
            finally:
                self._give_back(connection, reusable=reusable)
        return reply

    def close(self) -> None:
        """Close what is idle; what is in use is closed after its answer."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _exchange(self, connection: _Connection, request: Request) -> tuple[Reply, bool]:
        try:
            self._write(connection, request)
            connection.sock.settimeout(request.read_timeout_seconds)
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            reply = Reply(response.status, headers, response.read())
        except TimeoutError as error:
            raise too_late(self._url) from error
        except (OSError, http.client.HTTPException) as error:
            raise lost(self._url, error) from error
        return reply, not response.will_close

    def _write(self, connection: _Connection, request: Request) -> None:
        """Send a request.

        Raises:
            UnavailableError: The other side took it too slowly.
            InvalidRequestError: A header holds what HTTP cannot carry.
        """
        connection.sock.settimeout(UPLOAD_TIMEOUT_SECONDS)
        headers = {**self._headers, **request.headers}
        content: bytes | io.BytesIO | None = request.content
        if request.content is not None and len(request.content) > PIECE_BYTES:
            content = io.BytesIO(request.content)
            headers["Content-Length"] = str(len(request.content))
        try:
            # A server may answer (too large, unknown key) and close before it has read everything: then that counts.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(request.method, self._prefix + _target(request), content, headers)
                connection.flush()
        except TimeoutError as error:
            raise lost(self._url, error) from error
        except ValueError:  # whose text would show the header, and with it perhaps the key
            raise InvalidRequestError("A header of this request, or the API key, holds a line break.") from None

    def _connect(self) -> _Connection:
        arguments: dict[str, Any] = {"timeout": CONNECT_TIMEOUT_SECONDS, "blocksize": PIECE_BYTES}
        if self._tls is None:
            connection = _Connection(self._host, self._port, **arguments)
        else:
            connection = _TlsConnection(self._host, self._port, context=self._tls, **arguments)
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise nobody(self._url, error) from error
        for option in socket_options():
            connection.sock.setsockopt(*option)
        return connection

    def _take(self) -> _Connection | None:
        """Return the idle connection that was used last, if the other side has not closed it meanwhile."""
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None or connection.is_open():
                return connection
            connection.close()

    def _give_back(self, connection: _Connection, *, reusable: bool) -> None:
        connection.used_at = time.monotonic()
        if reusable:
            with self._lock:
                if len(self._idle) < MAX_IDLE and not self._closed:
                    self._idle.append(connection)
                    return
        connection.close()


class _Connection(http.client.HTTPConnection):
    """A connection that sends head and body in one piece: in two, the gateway would wake up twice for a request."""

    used_at = 0.0
    _held: bytes | None = None

    def send(self, data: Any) -> None:
        """Take the next piece of a request from the standard library; the head waits for what follows it."""
        if self._held is None:
            self._held = data
        else:
            super().send(self._held + data)
            self._held = b""

    def flush(self) -> None:
        """Send the head of a request without a body; at the end of each request."""
        held, self._held = self._held, None
        if held:
            super().send(held)

    def is_open(self) -> bool:
        """Whether an idle connection can be used: not too old, and not closed, which would make it readable."""
        if time.monotonic() - self.used_at > KEEPALIVE_SECONDS:
            return False
        if not hasattr(select, "poll"):  # Windows
            return not select.select([self.sock], [], [], 0)[0]
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)


class _TlsConnection(_Connection, http.client.HTTPSConnection):
    """The same over TLS."""


def _target(request: Request) -> str:
    """Return a request's path with its query."""
    given = [(name, value) for name, value in request.params.items() if value is not None]
    if not given:
        return request.path
    as_text = [(name, str(value).lower() if isinstance(value, bool) else value) for name, value in given]
    return f"{request.path}?{urlencode(as_text, doseq=True)}"
