"""The gateway's own HTTP client against servers that speak well and badly."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from brinery_platform.gateway.connections import HIGH_WATER_BYTES, BrokenError, Connection, Connections

HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def talk(serve: Serve, use: Callable[[Connections, str], Awaitable[None]]) -> int:
    """Run `use` against a server that runs `serve` for each connection; return how many connections came."""
    connected = 0

    async def run() -> None:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connected
            connected += 1
            try:
                await serve(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        connections = Connections(connect_seconds=2.0, idle_seconds=0.2)
        try:
            async with asyncio.timeout(20):
                await use(connections, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        finally:
            connections.close()
            server.close()
            await asyncio.sleep(0.01)

    uvloop.run(run())
    return connected


async def get(connections: Connections, origin: str) -> tuple[Connection, bytes]:
    connection = await connections.open(origin)
    await connection.exchange(HEAD, b"", whole_bytes=1024)
    return connection, await connection.rest()


def answering(*replies: bytes, close: bool = False) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in replies:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(reply)
            await writer.drain()
        if not close:
            await reader.read()

    return serve


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\nhi"


def test_a_connection_is_used_again_after_a_complete_reply() -> None:
    async def use(connections: Connections, origin: str) -> None:
        for _ in range(3):
            connection, body = await get(connections, origin)
            assert (connection.status, connection.content_type, body) == (200, "application/json", b"hi")
            connection.release()

    assert talk(answering(OK, OK, OK), use) == 1


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(OK.replace(b"Content-Type", b"Connection: close\r\nContent-Type"), id="the worker says close"),
        pytest.param(
            OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", id="a second reply that nobody asked for"
        ),
        pytest.param(OK.replace(b"HTTP/1.1", b"HTTP/1.0"), id="HTTP/1.0 without keep-alive"),
    ],
)
def test_a_connection_that_could_carry_somebody_elses_answer_is_not_used_again(reply: bytes) -> None:
    async def use(connections: Connections, origin: str) -> None:
        for _ in range(2):
            connection, body = await get(connections, origin)
            assert body == b"hi"
            connection.release()

    assert talk(answering(reply, reply), use) == 2


def test_bytes_that_come_while_a_connection_is_idle_end_it() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await asyncio.sleep(0.05)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        await reader.read()

    async def use(connections: Connections, origin: str) -> None:
        connection, _ = await get(connections, origin)
        connection.release()
        await asyncio.sleep(0.15)
        connection, body = await get(connections, origin)
        assert body == b"hi"
        connection.release()

    assert talk(serve, use) == 2


def test_an_idle_connection_is_given_up_before_the_worker_does() -> None:
    async def use(connections: Connections, origin: str) -> None:
        connection, _ = await get(connections, origin)
        connection.release()
        await asyncio.sleep(0.5)
        assert not connection.usable

    assert talk(answering(OK), use) == 1


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="not HTTP"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi", id="less than announced"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", id="chunks without an end"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi", id="two lengths"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000, id="a header without an end"),
    ],
)
def test_a_reply_that_is_broken_is_an_error(reply: bytes) -> None:
    async def use(connections: Connections, origin: str) -> None:
        connection = await connections.open(origin)
        with pytest.raises(BrokenError):
            await connection.exchange(HEAD, b"", whole_bytes=1024)
            await connection.rest()
        assert connection.complete is False
        connection.drop()

    assert talk(answering(reply, close=True), use) == 1


def test_a_reply_without_a_length_ends_with_its_connection() -> None:
    async def use(connections: Connections, origin: str) -> None:
        connection, body = await get(connections, origin)
        assert body == b"all of it"
        connection.release()
        assert not connection.usable

    talk(answering(b"HTTP/1.1 200 OK\r\n\r\nall of it", close=True), use)


def test_a_worker_waits_while_nobody_reads_its_reply() -> None:
    size = 64 * HIGH_WATER_BYTES
    written = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while written < size:
            writer.write(b"x" * 65_536)
            written += 65_536
            await writer.drain()

    async def use(connections: Connections, origin: str) -> None:
        connection = await connections.open(origin)
        await connection.exchange(HEAD, b"", whole_bytes=1024)
        await asyncio.sleep(0.5)
        assert written < size / 2, "the rest waits in the worker, not in the gateway's memory"
        total = 0
        async for piece in connection.pieces():
            total += len(piece)
        assert total == size
        connection.release()
        assert connection.usable

    talk(serve, use)


def test_nobody_listening_is_an_os_error() -> None:
    async def use(connections: Connections, _origin: str) -> None:
        with pytest.raises(OSError, match="refused"):
            await connections.open("http://127.0.0.1:1")

    talk(answering(), use)
