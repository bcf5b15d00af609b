"""A small HTTP server on a selector: answers short JSON questions and never waits for anybody.

It serves the supervisor's control port, and stands in on the serving port while nothing serves there. The standard
library's server would cost a thread a connection and twice the supervisor's memory.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Callable
from typing import Any, Final

_REASONS: Final = {
    200: "OK",
    202: "Accepted",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    503: "Service Unavailable",
}
_MAX_HEAD_BYTES: Final = 64 * 1024
_IDLE_SECONDS: Final = 10.0
_LINGER_SECONDS: Final = 2.0
_MAX_CONNECTIONS: Final = 256


def error_body(kind: str, message: str) -> dict[str, Any]:
    """Return the wire form of an error, as ``BrineryError.to_json`` has it, without importing more than we need."""
    return {"error": {"type": kind, "message": message, "context": {}}}


class Exchange:
    """One request, and the way to answer it, at once or later.

    Args:
        server: Whose connection it is.
        connection: The accepted socket, non-blocking.
    """

    def __init__(self, server: HttpPort, connection: socket.socket) -> None:
        self.method = ""
        self.path = ""
        self.query = ""
        self.deadline = time.monotonic() + _IDLE_SECONDS
        self._server = server
        self._socket = connection
        self._head = b""
        self._out = b""
        self._asked = False
        self._answered = False

    def reply(self, status: int, body: Any) -> None:
        """Answer with JSON and close; later answers, and those to a client that has gone, are dropped.

        Args:
            status: HTTP status.
            body: Plain JSON data.
        """
        if self._answered:
            return
        self._answered = True
        payload = json.dumps(body).encode()
        self._out = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\n"
            f"X-Content-Type-Options: nosniff\r\nContent-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
        ).encode() + payload
        self.deadline = time.monotonic() + _IDLE_SECONDS
        self._flush()

    def ready(self, mask: int) -> None:
        """Go on, as the selector says that the socket can be read or written."""
        if mask & selectors.EVENT_WRITE:
            self._flush()
        if mask & selectors.EVENT_READ:
            self._read()

    def hold(self, seconds: float) -> None:
        """Let the client wait so long for an answer that is given later."""
        self.deadline = time.monotonic() + seconds

    def close(self) -> None:
        """Close the connection, whatever it waits for."""
        self._answered = True
        self._server.forget(self, self._socket)
        self._socket.close()

    def _flush(self) -> None:
        try:
            sent = self._socket.send(self._out)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        self._out = self._out[sent:]
        if self._out:
            self._server.watch(self, self._socket, selectors.EVENT_READ | selectors.EVENT_WRITE)
            return
        # Closing with unread input resets the connection and may destroy the reply on its way, so what the client
        # still sends (the body of a POST) is read to its end, within limits.
        self.deadline = time.monotonic() + _LINGER_SECONDS
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self._server.watch(self, self._socket, selectors.EVENT_READ)

    def _read(self) -> None:
        try:
            data = self._socket.recv(64 * 1024)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        if self._asked:
            return
        self._head += data
        if b"\r\n\r\n" in self._head:
            self._asked = True
            self._ask()
        elif len(self._head) > _MAX_HEAD_BYTES:
            self._asked = True
            self.reply(400, error_body("invalid_request", "The request's headers are too long."))

    def _ask(self) -> None:
        words = self._head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        self._head = b""
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            self.reply(400, error_body("invalid_request", "This is not an HTTP/1.1 request."))
            return
        self.method = words[0]
        self.path, _, self.query = words[1].partition("?")
        self._server.handler(self)


class HttpPort:
    """A listening socket whose requests go to `handler`.

    Args:
        selector: The one of the process's loop; its keys' data are callables that take the event mask.
        listener: Already listening, non-blocking.
        handler: Called with each request; answers by `Exchange.reply`, then or later.
    """

    def __init__(
        self, selector: selectors.BaseSelector, listener: socket.socket, handler: Callable[[Exchange], None]
    ) -> None:
        self.handler = handler
        self._selector = selector
        self._listener = listener
        self._exchanges: set[Exchange] = set()
        self._accepting = False

    def open(self) -> None:
        """Begin to accept connections; nothing happens when it does already."""
        if not self._accepting:
            self._accepting = True
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def pause(self) -> None:
        """Leave new connections to whoever else listens on the socket; running exchanges go on."""
        if self._accepting:
            self._accepting = False
            self._selector.unregister(self._listener)

    def close(self) -> None:
        """Stop listening and drop every connection."""
        self.pause()
        self._listener.close()
        for exchange in list(self._exchanges):
            exchange.close()

    def expire(self, now: float) -> None:
        """Close the connections whose time is over."""
        for exchange in [found for found in self._exchanges if found.deadline < now]:
            exchange.close()

    def watch(self, exchange: Exchange, connection: socket.socket, events: int) -> None:
        """Change which events of a connection are waited for."""
        self._selector.modify(connection, events, exchange.ready)

    def forget(self, exchange: Exchange, connection: socket.socket) -> None:
        """Take a connection off the loop."""
        if exchange in self._exchanges:
            self._exchanges.discard(exchange)
            self._selector.unregister(connection)

    def _accept(self, _mask: int) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        if len(self._exchanges) >= _MAX_CONNECTIONS:
            min(self._exchanges, key=lambda found: found.deadline).close()
        exchange = Exchange(self, connection)
        self._exchanges.add(exchange)
        self._selector.register(connection, selectors.EVENT_READ, exchange.ready)
