"""HTTP/1.1 to the workers, as little of it as the hot path needs: asyncio protocols on httptools' parser.

A general client library spends more on a call than everything else on the hot path together; see
``docs/decisions/0005-own-http-client-on-the-hot-path.md``. A connection carries one exchange at a time, and is kept
for the next one only if the reply ended exactly where its framing said.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final, cast
from urllib.parse import urlsplit

import httptools

HIGH_WATER_BYTES: Final = 1024 * 1024
"""Of a reply that nobody reads yet; above it the worker is made to wait."""
MAX_HEADER_BYTES: Final = 64 * 1024


class BrokenError(Exception):
    """The connection ended before the reply did, or what came is no HTTP reply."""


class Connection(asyncio.Protocol):
    """One connection to one worker.

    Args:
        keep: Takes it when it can carry another exchange.
    """

    def __init__(self, keep: Callable[[Connection], None]) -> None:
        self._keep = keep
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        self.idle_since = 0.0
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._pieces: deque[bytes] = deque()
        self._unread_bytes = 0
        self._header_bytes = 0
        self._error: BrokenError | None = None
        self._paused = False
        self._chunked = False
        self._reusable = False
        self.headers_done = False
        self.complete = False
        self.status = 0
        self.content_type: str | None = None
        self.content_length: int | None = None

    # ------------------------------------------------------------------------------------------------- an exchange
    async def exchange(self, head: bytes, body: bytes, *, whole_bytes: int) -> None:
        """Send a request and wait for its reply: until it is complete, or known to be longer than `whole_bytes`.

        Args:
            head: Request line and headers, the empty line included.
            body: As announced in the head.
            whole_bytes: Replies that announce at most so many bytes are waited for until they are complete.

        Raises:
            BrokenError: The connection ended, or the reply is not HTTP.
        """
        self._begin()
        if self._transport is None:
            raise BrokenError("not connected")
        self._transport.write(head + body if len(body) < HIGH_WATER_BYTES else head)
        if len(body) >= HIGH_WATER_BYTES:
            self._transport.write(body)
        while not self.complete:
            if self.headers_done and (self.content_length is None or self.content_length > whole_bytes):
                return
            await self._wait()

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the reply's bytes as they come.

        Raises:
            BrokenError: The connection ended before the reply did.
        """
        while True:
            while self._pieces:
                piece = self._pieces.popleft()
                self._unread_bytes -= len(piece)
                self._flow()
                yield piece
            if self.complete:
                return
            await self._wait()

    async def rest(self) -> bytes:
        """Return all bytes of the reply that were not read yet.

        Raises:
            BrokenError: The connection ended before the reply did.
        """
        if self.complete and len(self._pieces) == 1:
            return self._pieces[0]
        return b"".join([piece async for piece in self.pieces()])

    def release(self) -> None:
        """Keep the connection for another exchange if it can carry one, else drop it."""
        if self.complete and self._reusable and not self._closed and self._error is None:
            self.idle_since = self._loop.time()
            self._keep(self)
        else:
            self.drop()

    def drop(self) -> None:
        """Close the connection at once."""
        self._closed = True
        if self._transport is not None:
            self._transport.abort()

    @property
    def usable(self) -> bool:
        """Whether nothing has ended it while it was idle."""
        return not self._closed

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is None or self._waiter.done():
            return
        if self._error is not None and not self.complete:
            self._waiter.set_exception(self._error)
        else:
            self._waiter.set_result(None)

    def _flow(self) -> None:
        """Let the worker wait while too much of its reply is unread."""
        full = self._unread_bytes > HIGH_WATER_BYTES
        if full != self._paused and self._transport is not None and not self._closed:
            self._paused = full
            if full:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _fail(self, why: str) -> None:
        self._error = BrokenError(why)
        self.drop()

    # ---------------------------------------------------------------------------------------- called by asyncio
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without saying so

    def data_received(self, data: bytes) -> None:
        """Take bytes; some that nobody asked for end the connection."""
        if self.complete:
            self._fail("it sent bytes after the end of its reply")
            return
        if not self.headers_done:
            self._header_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, ValueError) as error:
            self._fail(f"that was no HTTP reply: {error}")
        else:
            if not self.headers_done and self._header_bytes > MAX_HEADER_BYTES:
                self._fail("its headers do not end")
            self._flow()
        if self.complete or self.headers_done or self._error is not None:
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Learn that it is over; a reply without a length ends so."""
        self._closed = True
        if not self.complete and self._error is None:
            if exc is None and self.headers_done and self.content_length is None and not self._chunked:
                self.complete = True
            else:
                self._error = BrokenError("the connection ended")
        self._wake()

    # ----------------------------------------------------------------------------------- called by httptools' parser
    def on_message_begin(self) -> None:
        """Notice a second reply to one request."""
        if self.complete:
            self._closed = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        name = name.lower()
        if name == b"content-length":
            self.content_length = int(value)
        elif name == b"content-type":
            self.content_type = value.decode("latin-1")
        elif name == b"transfer-encoding":
            self._chunked = True

    def on_headers_complete(self) -> None:
        """Know what kind of reply it is."""
        if not self.complete:
            self.status = self._parser.get_status_code()
            self.headers_done = True
            self._reusable = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        if not self.complete:
            self._pieces.append(body)
            self._unread_bytes += len(body)

    def on_message_complete(self) -> None:
        """Know that nothing more comes."""
        self.complete = True


class Connections:
    """Connections to every worker, kept while they are used.

    Args:
        connect_seconds: Limit for opening one.
        idle_seconds: How long one is kept unused; less than the worker keeps it, or requests race its closing.
    """

    def __init__(self, *, connect_seconds: float, idle_seconds: float) -> None:
        self._connect_seconds = connect_seconds
        self._idle_seconds = idle_seconds
        self._idle: dict[str, deque[Connection]] = {}
        self._sweep: asyncio.TimerHandle | None = None

    async def open(self, origin: str) -> Connection:
        """Return a connection for one exchange.

        Args:
            origin: ``http://host:port``.

        Raises:
            OSError: Nobody takes connections there, or not in time.
        """
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()  # the one used last: the others get old and go
            if connection.usable:
                return connection
        parts = urlsplit(origin)
        loop = asyncio.get_running_loop()
        if self._sweep is None:
            self._sweep = loop.call_later(self._idle_seconds / 2, self._drop_old)
        async with asyncio.timeout(self._connect_seconds):
            _, connection = await loop.create_connection(
                lambda: Connection(lambda used: self._keep(origin, used)), parts.hostname or "", parts.port or 80
            )
        return connection

    def _keep(self, origin: str, connection: Connection) -> None:
        self._idle.setdefault(origin, deque()).append(connection)

    def close(self) -> None:
        """Drop every idle connection."""
        if self._sweep is not None:
            self._sweep.cancel()
        for idle in self._idle.values():
            while idle:
                idle.pop().drop()

    def _drop_old(self) -> None:
        loop = asyncio.get_running_loop()
        for origin, idle in list(self._idle.items()):
            while idle and loop.time() - idle[0].idle_since > self._idle_seconds:
                idle.popleft().drop()
            if not idle:
                del self._idle[origin]
        self._sweep = loop.call_later(self._idle_seconds / 2, self._drop_old) if self._idle else None
