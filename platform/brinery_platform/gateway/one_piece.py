"""uvicorn's HTTP, but the head of a reply leaves together with its body."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD: Final = b"HTTP/1.1 "
COPIED_BYTES: Final = 64 * 1024
"""Up to here a body is joined to its head; copying a larger one would cost more than sending twice."""


class OnePieceProtocol(HttpToolsProtocol):
    """One connection: uvicorn writes head and body one after the other, which is a system call more for each reply.

    The client, too, may wake up twice for it.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Take the transport."""
        super().connection_made(_HeadFirst(transport, self.loop))  # type: ignore[arg-type]  # a transport by its methods


class _HeadFirst:
    """A transport that keeps the head of a reply until the next write, or the loop's next turn.

    Args:
        transport: The real one.
        loop: Its event loop.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        """Everything else is the transport's."""
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write, or keep what looks like a head; bytes of a body that look so are only a moment late."""
        if self._head:
            head, self._head = self._head, b""
            if len(data) > COPIED_BYTES:
                self._transport.write(head)
            else:
                data = head + data
        elif data.startswith(HEAD):
            self._head = data
            self._loop.call_soon(self.flush)
            return
        self._transport.write(data)

    def flush(self) -> None:
        """Write what is kept."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def close(self) -> None:
        """Write what is kept, then close."""
        self.flush()
        self._transport.close()
