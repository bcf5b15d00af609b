"""A worker as the gateway sees one: the contract spoken over a bare socket, well or badly as a test wants it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from brinery_platform.routes import WorkerRoute

Reply = bytes | Awaitable[bytes]


@dataclass
class Seen:
    """One request that came."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


def reply(body: bytes, *, status: int = 200, content_type: str = "application/json", extra: str = "") -> bytes:
    """Return a whole HTTP reply."""
    head = f"HTTP/1.1 {status} Stub\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


def busy() -> bytes:
    """Return what a worker answers whose slots are taken."""
    return reply(b'{"error": {"type": "worker_busy", "message": "busy", "context": {}}}', status=429)


class StubWorker:
    """Listens on loopback in a thread of its own.

    Args:
        worker_id: ``wrk_…``.
        answer: Makes the reply to a predict or stream request; by default it echoes the body. It may write to the
            connection by itself and return what is left; None in its place closes the connection.
        supervised: Whether it has a supervisor, which answers on the same port; an image has none.
    """

    def __init__(
        self,
        worker_id: str = "wrk_1",
        answer: Callable[..., Awaitable[bytes | None]] | None = None,
        *,
        supervised: bool = True,
    ) -> None:
        self.worker_id = worker_id
        self.supervised = supervised
        self.fate: object = {"fate": "unknown", "reason": "", "others": 0}
        self.fates_asked: list[str] = []
        self.answer = answer or self._echo
        self.seen: list[Seen] = []
        self.cancelled: list[str] = []
        self.running = 0
        self.most_running = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=False)
        self._thread.start()
        assert self._ready.wait(10)

    async def _echo(self, seen: Seen, _writer: asyncio.StreamWriter) -> bytes:
        return reply(seen.body)

    @property
    def route(self) -> WorkerRoute:
        url = f"http://127.0.0.1:{self.port}"
        return WorkerRoute(id=self.worker_id, url=url, control_url=url if self.supervised else "")

    def leave(self) -> None:
        """Be gone, from within an answer."""
        self._stop.set()

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(10)

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")[:-2]
        method, target, _ = first.split(" ")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        seen = Seen(method, target, headers, body)
        if target.startswith("/cancel"):
            self.cancelled.append(target.partition("request_id=")[2])
            writer.write(reply(b'{"cancelled": true, "how": "exception"}'))
            return True
        if target.startswith("/fate"):
            self.fates_asked.append(target.partition("request_id=")[2])
            writer.write(reply(json.dumps(self.fate).encode()))
            return True
        self.seen.append(seen)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            answered = await self.answer(seen, writer)
        finally:
            self.running -= 1
        if answered is None:
            return False
        writer.write(answered)
        await writer.drain()
        return True


def wait_until(condition: Callable[[], object], *, seconds: float = 10.0) -> None:
    """Wait for something that will come; fail if it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come in time"
        time.sleep(0.01)


def events_of(text: str) -> list[tuple[str, object]]:
    """Return (event, data) of server-sent events."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        if "data" in fields:
            found.append((fields.get("event", "message"), json.loads(fields["data"])))
    return found
