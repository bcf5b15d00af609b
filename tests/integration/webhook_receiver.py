"""Who receives webhooks in the tests: a real server on loopback, well or hostile."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from ipaddress import ip_network

LOOPBACK = [ip_network("127.0.0.0/8")]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BROKEN = b"HTTP/1.1 500 Broken\r\nContent-Length: 6\r\n\r\nbroken"


class Receiver:
    """Answers one request on each connection; remembers what came.

    Args:
        answer: The bytes; a list gives one after the other, the last one for ever.
        host: Where it listens.
        context: Of TLS.
        after: What it does with the connection after that.
    """

    def __init__(self, answer=OK, *, host="127.0.0.1", context=None, after=None):
        self.answers = answer if isinstance(answer, list) else [answer]
        self.host, self.context, self.after = host, context, after
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.connections = 0

    async def __aenter__(self):
        self._served: set[asyncio.Task] = set()
        self._server = await asyncio.start_server(self._serve, self.host, 0, ssl=self.context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._served:
            task.cancel()
        if self._served:
            await asyncio.wait(self._served)

    @property
    def url(self):
        return f"http://{self.host}:{self.port}/hook"

    async def _serve(self, reader, writer):
        self.connections += 1
        self._served.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, ssl.SSLError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.split("\r\n")[:-2]
            found = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            body = await reader.readexactly(int(found["content-length"]))
            self.requests.append((first, found, body))
            writer.write(self.answers[min(len(self.requests), len(self.answers)) - 1])
            await writer.drain()
            if self.after is not None:
                await self.after(writer)
        writer.transport.abort()
