"""A proxy in front of an S3 server that can answer 500, be slow, or refuse connections for a while."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

from servers import free_port

Mode = Literal["whole", "failing", "slow", "refusing"]
SLOW_SECONDS = 2.0
"""What a request waits for before it is passed on."""
_TEXT = b"<Error><Code>InternalError</Code><Message>as ordered</Message></Error>"
_FAILURE = b"HTTP/1.1 500 Failed\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(_TEXT), _TEXT)


class S3Faults:
    """Passes bytes on to `upstream` untouched, so that signatures stay valid; `mode` changes what happens.

    Args:
        upstream: URL of the real server.
    """

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._host, self._port = parts.hostname or "", parts.port or 0
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.requests = 0
        self._mode: Mode = "whole"
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="s3 faults")

    @contextlib.contextmanager
    def serving(self) -> Iterator[S3Faults]:
        """Serve while the ``with`` lasts."""
        self._thread.start()
        try:
            self.be("whole")
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def be(self, mode: Mode) -> None:
        """Change the mode; connections that are open end."""
        asyncio.run_coroutine_threadsafe(self._change(mode), self._loop).result(10)

    async def _change(self, mode: Mode) -> None:
        self._mode = mode
        for writer in list(self._open):
            writer.transport.abort()
        if mode == "refusing":
            await self._stop_listening()
        elif self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def _close(self) -> None:
        await self._change("refusing")
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        self.requests += 1
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                if self._mode == "failing":
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(_FAILURE)
                    await writer.drain()
                else:
                    await self._pass_on(reader, writer)
        finally:
            self._open.discard(writer)
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(self._host, self._port)
        try:
            back = asyncio.create_task(self._copy(up_reader, writer, 0.0))
            await self._copy(reader, up_writer, SLOW_SECONDS if self._mode == "slow" else 0.0)
            await back
        finally:
            up_writer.close()

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wait_seconds: float) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                await asyncio.sleep(wait_seconds)
                writer.write(data)
                await writer.drain()
            writer.write_eof()
