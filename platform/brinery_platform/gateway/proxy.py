"""Bytes to a worker and back: the one seam between the hot path and the connections.

Replies of workers are hostile: of their headers only a known content type passes, and their size is bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from functools import lru_cache
from typing import Final
from urllib.parse import quote, urlsplit

import structlog

from brinery.errors import InvalidRequestError, WorkerError
from brinery.spec import CONTENT_EVENTS, CONTENT_JSON, CONTENT_PICKLE
from brinery_platform.gateway.connections import BrokenError, Connection, Connections

MAX_REPLY_BYTES: Final = 256 * 1024 * 1024
WHOLE_BYTES: Final = 1024 * 1024
"""Replies up to this size travel as one piece; larger ones pass through as they come."""
CONNECT_SECONDS: Final = 2.0
CANCEL_SECONDS: Final = 5.0
KEEP_ALIVE_SECONDS: Final = 3.0
"""With the sweep's period below the 5 s after which servers of images commonly close an idle connection, and our own
worker's 75 s, so that no request meets a connection that is just being closed."""

_OCTETS: Final = "application/octet-stream"
_PASSED: Final = frozenset({CONTENT_JSON, CONTENT_PICKLE, CONTENT_EVENTS, _OCTETS, "text/plain"})

logger = structlog.get_logger(__name__)


class NotSentError(Exception):
    """The worker took no connection, so the request cannot have run."""


class LostError(Exception):
    """The connection broke after the request was sent; what became of the call is for others to say.

    Args:
        cause: What was seen of it.
    """

    message: Final = (
        "The connection to the worker broke before its reply was complete; the call may have run. "
        "`brinery logs` shows what the worker said."
    )

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


@lru_cache(maxsize=256)
def safe_content_type(given: str) -> str:
    """Return the content type under which a worker's bytes may leave this origin: never one that a browser runs."""
    kind = given.partition(";")[0].strip().lower()
    if kind not in _PASSED:
        return _OCTETS
    return "text/plain; charset=utf-8" if kind == "text/plain" else kind


class Reply:
    """A worker's reply: status, safe content type, and bytes, bounded in size.

    Close it in any case; closing before its end drops the connection.
    """

    __slots__ = ("_connection", "content_type", "status")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.status = connection.status
        self.content_type = safe_content_type(connection.content_type or CONTENT_JSON)

    @property
    def size(self) -> int | None:
        """The size in bytes that the worker announced."""
        return self._connection.content_length

    async def whole(self) -> bytes | None:
        """Return all bytes, or None if the reply is so large that `pieces` must pass it on.

        Raises:
            LostError: The connection broke.
        """
        size = self.size
        if size is None or size > WHOLE_BYTES:
            return None
        try:
            return await self._connection.rest()
        except BrokenError as error:
            raise LostError(str(error)) from None

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the bytes as they come.

        Raises:
            LostError: The connection broke.
            WorkerError: More than `MAX_REPLY_BYTES` came.
        """
        total = 0
        try:
            async for piece in self._connection.pieces():
                total += len(piece)
                if total > MAX_REPLY_BYTES:
                    raise too_large()
                yield piece
        except BrokenError as error:
            raise LostError(str(error)) from None

    def close(self) -> None:
        """Give the connection back, or drop it where the reply was not read to its end."""
        self._connection.release()


class Upstream:
    """The connections to all workers; belongs to the event loop that first uses it."""

    def __init__(self) -> None:
        self._connections = Connections(connect_seconds=CONNECT_SECONDS, idle_seconds=KEEP_ALIVE_SECONDS)

    def close(self) -> None:
        """Close every connection."""
        self._connections.close()

    async def post(self, origin: str, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        """Send one request; the caller bounds the time by cancelling.

        Args:
            origin: ``http://host:port`` of a worker.
            path: ``/predict`` or ``/stream``, with its query.
            body: Passed on untouched.
            headers: All headers that the worker gets, beside those that frame the body.

        Raises:
            NotSentError: No connection; another worker may be asked.
            LostError: The connection broke after sending.
            WorkerError: The reply is not one that is passed on.
        """
        return await self._send(origin, _head("POST", origin, path, body, headers), body)

    async def get(self, origin: str, path: str) -> bytes:
        """Return what a worker's supervisor tells.

        Args:
            origin: ``http://host:port`` of its control port.
            path: With its query.

        Raises:
            NotSentError: No connection.
            LostError: The connection broke.
            WorkerError: The reply is too large, or of an odd status.
        """
        reply = await self._send(origin, _head("GET", origin, path, b"", {}), b"")
        try:
            whole = await reply.whole()
        finally:
            reply.close()
        if whole is None:
            raise too_large()
        return whole

    async def _send(self, origin: str, head: bytes, body: bytes) -> Reply:
        try:
            connection = await self._connections.open(origin)
        except OSError as error:  # TimeoutError is one
            raise NotSentError(str(error) or type(error).__name__) from None
        try:
            await connection.exchange(head, body, whole_bytes=WHOLE_BYTES)
            _refuse_strange(connection)
        except BrokenError as error:
            connection.drop()
            raise LostError(str(error)) from None
        except BaseException:
            connection.drop()
            raise
        return Reply(connection)

    async def cancel(self, origin: str, request_id: str) -> None:
        """Ask a worker's supervisor to stop a request; a worker that is gone has stopped it."""
        try:
            async with asyncio.timeout(CANCEL_SECONDS):
                reply = await self.post(origin, f"/cancel?request_id={quote(request_id, safe='')}", b"", {})
                reply.close()
        except (NotSentError, LostError, WorkerError, TimeoutError) as error:
            logger.info("cancel_not_delivered", request_id=request_id, error=str(error))


def _refuse_strange(connection: Connection) -> None:
    if not 200 <= connection.status < 300 and not 400 <= connection.status < 600:
        raise WorkerError(f"The worker answered with status {connection.status}, which is not passed on.")
    if (connection.content_length or 0) > MAX_REPLY_BYTES:
        raise too_large()


@lru_cache(maxsize=4096)
def _request_line(method: str, origin: str, path: str) -> str:
    return f"{method} {path} HTTP/1.1\r\nHost: {urlsplit(origin).netloc}\r\nContent-Length: "


def _head(method: str, origin: str, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    lines = "".join([f"\r\n{name}: {value}" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
        raise InvalidRequestError("A header holds a line break; send it without.")
    return f"{_request_line(method, origin, path)}{len(body)}{lines}\r\n\r\n".encode("latin-1")


def too_large() -> WorkerError:
    """Return the error for a reply above `MAX_REPLY_BYTES`."""
    return WorkerError(
        f"The worker's reply is larger than {MAX_REPLY_BYTES // 2**20} MiB; return a reference to the data instead."
    )
