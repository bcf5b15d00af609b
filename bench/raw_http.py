"""A client that costs next to nothing: requests written by hand over kept-alive connections, on asyncio."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from harness import BenchmarkError

READ_TIMEOUT_SECONDS: Final = 90.0


class Connection:
    """One connection to a gateway.

    Args:
        reader: Its stream of bytes.
        writer: Its stream of bytes.
        api_key: Sent with every request.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, api_key: str) -> None:
        self._reader = reader
        self._writer = writer
        self._head = f"Host: bench\r\nAuthorization: Bearer {api_key}\r\nContent-Type: application/json\r\n"

    async def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
        """Send a request and return the reply's status and its decoded JSON."""
        await self.send(method, path, body)
        async with asyncio.timeout(READ_TIMEOUT_SECONDS):
            head = await self._reader.readuntil(b"\r\n\r\n")
            status = int(head[9:12])
            length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
            return status, json.loads(await self._reader.readexactly(length))

    async def send(self, method: str, path: str, body: bytes = b"") -> None:
        """Send a request whose reply is not waited for."""
        self._writer.write(
            f"{method} {path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        )
        await self._writer.drain()

    def close(self) -> None:
        """Close it."""
        self._writer.close()


@asynccontextmanager
async def connections(url: str, api_key: str, count: int) -> AsyncIterator[list[Connection]]:
    """Open so many connections for the length of a block."""
    parts = urlsplit(url)
    opened: list[Connection] = []
    try:
        while len(opened) < count:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            opened.append(Connection(reader, writer, api_key))
        yield opened
    finally:
        for connection in opened:
            connection.close()


async def submit_all(
    url: str, api_key: str, endpoint: str, task_ids: Iterable[str], body: bytes, *, at_once: int
) -> None:
    """Submit a task under each id.

    Args:
        url: Of the gateway.
        api_key: Whose tasks.
        endpoint: Its name.
        task_ids: The ids.
        body: The arguments, the same for all.
        at_once: Connections, each with one request at a time.

    Raises:
        BenchmarkError: One was refused.
    """
    ids = iter(task_ids)

    async def go_on(connection: Connection) -> None:
        for task_id in ids:
            status, reply = await connection.request("PUT", f"/v1/endpoints/{endpoint}/tasks/{task_id}", body)
            if status != 202:
                raise BenchmarkError(f"{task_id} was refused with {status}: {reply}")

    async with connections(url, api_key, at_once) as opened, asyncio.TaskGroup() as group:
        for connection in opened:
            group.create_task(go_on(connection))
