"""A forward proxy that connects a worker to the hosts of its list and to nothing else: tunnels, and plain HTTP.

A host is looked up once, each of its addresses has to be a public one that is not this machine's, and exactly those are
connected to. Whatever a worker does, it holds a bounded number of connections, for a bounded time.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import httpcore
import structlog

from brinery.errors import BrineryError
from brinery_platform.addresses import AddressPolicy, AddressRefusedError, Resolve, find_addresses
from brinery_platform.egress.heads import BadHeadError, Head, read_head
from brinery_platform.egress.permits import Permit, read_permit

MAX_HEAD_BYTES: Final = 64 * 1024
HEAD_SECONDS: Final = 10.0
CONNECT_SECONDS: Final = 15.0
"""For looking up and connecting together."""
IDLE_SECONDS: Final = 900.0
"""How long nothing may move in either direction; models think for minutes."""
LIFE_SECONDS: Final = 86_400.0
"""The longest that an attempt may take."""
MAX_OF_A_WORKER: Final = 128
"""Connections at once, by the worker's address; as many more hear that they are too many, others hear nothing."""
MAX_CONNECTING: Final = 16
"""Of an endpoint at once: a lookup that nobody answers holds a thread."""
PIECE_BYTES: Final = 64 * 1024
MAX_LINES_A_MINUTE: Final = 20
"""In the log, about one endpoint's refusals."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

log = structlog.get_logger()


class RefusedError(Exception):
    """The worker gets no connection.

    Args:
        status: HTTP status.
        reason: For its user, on one line.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Proxy:
    """The proxy of a home.

    Args:
        home: Where the key is that signs permits.
        policy: Which addresses may be reached.
        resolve: Finds a host's addresses.
        idle_seconds: See `IDLE_SECONDS`.
    """

    def __init__(
        self, home: Path, policy: AddressPolicy, resolve: Resolve, *, idle_seconds: float = IDLE_SECONDS
    ) -> None:
        self._home = home
        self._policy = policy
        self._resolve = resolve
        self._idle_seconds = idle_seconds
        self._of_worker: Counter[str] = Counter()
        self._connecting: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(MAX_CONNECTING))
        self._told: Counter[tuple[str, int]] = Counter()

    async def listen(self, host: str, port: int) -> asyncio.Server:
        """Begin to serve at one address.

        Raises:
            OSError: It is taken, or not this machine's.
        """
        return await asyncio.start_server(self._serve, host, port, limit=MAX_HEAD_BYTES)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = str(writer.get_extra_info("peername")[0])
        self._of_worker[peer] += 1
        try:
            async with asyncio.timeout(LIFE_SECONDS):
                await self._converse(peer, reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # one of the two has gone, or kept silent for too long
        finally:
            self._of_worker[peer] -= 1
            self._of_worker += Counter()  # forgets whoever has none left
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(HEAD_SECONDS):
                    await writer.wait_closed()
            writer.transport.abort()  # one that does not read to the end

    async def _converse(self, peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        whose = "nobody"
        try:
            head = await self._head(peer, reader)
            permit = self._permit(head)
            whose = permit.endpoint_id
            host = await self._connect(permit, head)
        except (RefusedError, BrineryError) as error:
            refused = error if isinstance(error, RefusedError) else RefusedError(503, error.message)
            self._tell(whose, refused)
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(HEAD_SECONDS):
                    await _answer(writer, refused)
            return
        async with _closed(host):
            if head.onward is None:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                host[1].write(head.onward)
            await self._join((reader, writer), host)

    def _permit(self, head: Head) -> Permit:
        permit = read_permit(self._home, head.user, head.token)
        if permit is None:
            raise RefusedError(407, "use the proxy as HTTPS_PROXY names it, with user and password")
        return permit

    async def _head(self, peer: str, reader: asyncio.StreamReader) -> Head:
        if self._of_worker[peer] > 2 * MAX_OF_A_WORKER:
            raise ConnectionAbortedError
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                raw = await reader.readuntil(b"\r\n\r\n")  # also of one too many, which would not hear why otherwise
            if self._of_worker[peer] > MAX_OF_A_WORKER:
                raise RefusedError(429, f"this worker has {MAX_OF_A_WORKER} connections open; close some")
            return read_head(raw)
        except asyncio.LimitOverrunError:
            raise RefusedError(431, "its headers do not end") from None
        except BadHeadError as error:
            raise RefusedError(400, str(error)) from None

    async def _connect(self, permit: Permit, head: Head) -> Streams:
        if not permit.allows(head.host, head.port):
            raise RefusedError(403, f"{head.host}:{head.port} is not in the egress list of this endpoint")
        try:
            async with asyncio.timeout(CONNECT_SECONDS), self._connecting[permit.endpoint_id]:
                addresses = await find_addresses(self._policy, self._resolve, head.host, head.port)
                return await self._first(addresses, head)
        except AddressRefusedError as error:
            raise RefusedError(403, str(error).rstrip(".")) from None
        except httpcore.ConnectError as error:
            raise RefusedError(502, str(error).rstrip(".")) from None
        except TimeoutError:
            raise RefusedError(504, f"{head.host} did not answer within {CONNECT_SECONDS:g} s") from None

    async def _first(self, addresses: list[str], head: Head) -> Streams:
        """Connect to the first address that answers; one that is silent leaves the others their share of the time."""
        why = ""
        for address in addresses:
            if _is_own(address, head.port) and not self._policy.names(address):
                raise RefusedError(403, f"{head.host} is the machine of the platform itself")
            try:
                async with asyncio.timeout(CONNECT_SECONDS / len(addresses)):
                    return await asyncio.open_connection(address, head.port, limit=PIECE_BYTES)
            except (OSError, TimeoutError) as error:
                why = getattr(error, "strerror", None) or "no answer in time"
        raise RefusedError(502, f"{head.host}:{head.port} cannot be connected to: {why}")

    async def _join(self, worker: Streams, host: Streams) -> None:
        """Copy in both directions until the host has nothing more to say, or nothing has moved for too long."""
        clock = asyncio.get_running_loop()
        async with asyncio.timeout(self._idle_seconds) as limit:

            async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
                while piece := await source.read(PIECE_BYTES):
                    limit.reschedule(clock.time() + self._idle_seconds)
                    target.write(piece)
                    await target.drain()
                if target.can_write_eof():
                    target.write_eof()

            def ended(task: asyncio.Task[None]) -> None:
                if not task.cancelled() and task.exception() is not None:  # the worker is gone: nobody reads any more
                    host[1].transport.abort()

            onward = asyncio.create_task(copy(worker[0], host[1]))
            onward.add_done_callback(ended)
            try:
                await copy(host[0], worker[1])
            finally:
                onward.cancel()
                await asyncio.gather(onward, return_exceptions=True)

    def _tell(self, whose: str, refused: RefusedError) -> None:
        minute = int(time.monotonic() // 60)
        self._told[whose, minute] += 1
        if self._told[whose, minute] <= MAX_LINES_A_MINUTE:
            log.info("egress.refused", endpoint_id=whose, status=refused.status, reason=refused.reason)
        for old in [key for key in self._told if key[1] < minute]:
            del self._told[old]


@contextlib.asynccontextmanager
async def _closed(streams: Streams) -> AsyncIterator[None]:
    try:
        yield
    finally:
        streams[1].transport.abort()


async def _answer(writer: asyncio.StreamWriter, refused: RefusedError) -> None:
    """Say no, the reason on the first line: it is what most clients put into their error."""
    body = f"brinery egress: {refused.reason}\n".encode()
    head = [f"HTTP/1.1 {refused.status} {refused.reason}", "Content-Type: text/plain", f"Content-Length: {len(body)}"]
    if refused.status == 407:
        head.append('Proxy-Authenticate: Basic realm="brinery egress"')
    writer.write("\r\n".join([*head, "Connection: close", "", ""]).encode("latin-1", "replace") + body)
    await writer.drain()


def _is_own(address: str, port: int) -> bool:
    """Whether an address is this machine's: a socket that is to speak to it would speak from it. Nothing is sent."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, port))
        except OSError:
            return False
        return str(probe.getsockname()[0]) == address
