"""Redis streams as server-sent events: each entry once, resumable, kept alive, ended with the process."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, cast

import orjson
from redis.asyncio import Redis
from starlette.responses import StreamingResponse

from brinery.errors import BrineryError, InvalidRequestError
from brinery.spec import CONTENT_EVENTS
from brinery_platform.gateway.replies import error_body
from brinery_platform.tasks import redis_errors

KEEP_ALIVE_SECONDS: Final = 15.0
KEEP_ALIVE: Final = b": keep-alive\n\n"
BLOCK_SECONDS: Final = 1.0
"""Below the client's socket timeout; also how long a stream outlives the wish to stop it."""
BATCH: Final = 500
BEGINNING: Final = "0-0"
_POSITION: Final = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")

Entry = tuple[str, dict[str, str]]


class StreamReader:
    """Reads the entries of a Redis stream in order, each once.

    Args:
        redis: A client whose replies are bytes.
        key: Of the stream; one that is not there is empty.
        after: Id of the last entry that is known already, `BEGINNING` for none.
    """

    def __init__(self, redis: Redis, key: str, after: str) -> None:
        self._redis = redis
        self._key = key
        self._after = after

    async def read(self, *, block: bool = False) -> list[Entry]:
        """Return the next entries, at most `BATCH`; none when there are no more.

        Args:
            block: Wait up to `BLOCK_SECONDS` for one; holds a connection meanwhile.

        Raises:
            UnavailableError: Redis is away.
        """
        milliseconds = int(BLOCK_SECONDS * 1000) if block else None
        with redis_errors():
            reply = await cast(
                "Awaitable[Any]", self._redis.xread({self._key: self._after}, count=BATCH, block=milliseconds)
            )
        batch = [_entry(raw) for raw in reply[0][1]] if reply else []
        if batch:
            self._after = batch[-1][0]
        return batch

    async def rest(self) -> AsyncIterator[Entry]:
        """Yield all entries that are there now."""
        while batch := await self.read():
            for entry in batch:
                yield entry


def position(last_event_id: str | None) -> str:
    """Return where a client's ``Last-Event-ID`` lets a stream go on.

    Raises:
        InvalidRequestError: It is not an id that a stream sent.
    """
    if last_event_id is None or not last_event_id:
        return BEGINNING
    if not _POSITION.fullmatch(last_event_id):
        raise InvalidRequestError("Last-Event-ID is not one that this stream sent; leave it out to start over.")
    return last_event_id


def frame(data: Any, *, event: str | None = None, event_id: str | None = None) -> bytes:
    """Return one server-sent event with JSON data."""
    head = (f"event: {event}\n" if event else "") + (f"id: {event_id}\n" if event_id else "")
    return head.encode() + b"data: " + orjson.dumps(data) + b"\n\n"


class EventStream(StreamingResponse):
    """Frames as they come, with a comment where nothing came for a while; an error becomes the last event.

    Args:
        frames: Server-sent events; ``b""`` says only that time has passed.
        counted: Held open as long as the stream is.
    """

    def __init__(self, frames: AsyncIterator[bytes], counted: AbstractContextManager[None] | None = None) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        frames = _kept_alive(frames, counted or nullcontext())
        super().__init__(frames, media_type=CONTENT_EVENTS, headers=headers)


async def _kept_alive(frames: AsyncIterator[bytes], counted: AbstractContextManager[None]) -> AsyncIterator[bytes]:
    with counted:
        sent_at = time.monotonic()
        try:
            async for one in frames:
                if one:
                    yield one
                    sent_at = time.monotonic()
                elif time.monotonic() - sent_at >= KEEP_ALIVE_SECONDS:
                    yield KEEP_ALIVE
                    sent_at = time.monotonic()
        except BrineryError as error:
            yield b"event: error\ndata: " + error_body(error) + b"\n\n"


def _entry(raw: tuple[bytes, dict[bytes, bytes]]) -> Entry:
    entry_id, fields = raw
    return entry_id.decode(), {name.decode(): value.decode(errors="replace") for name, value in fields.items()}
