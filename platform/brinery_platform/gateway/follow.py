"""Redis streams as server-sent events: each entry once, resumable, kept alive, ended with the process."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AbstractContextManager
from typing import Any, Final, cast

import orjson
from redis.asyncio import Redis
from starlette.responses import StreamingResponse

from brinery.errors import BrineryError, InvalidRequestError
from brinery.spec import CONTENT_EVENTS
from brinery_platform.gateway.replies import error_body
from brinery_platform.tasks import redis_errors

KEEP_ALIVE_SECONDS: Final = 15.0
BLOCK_SECONDS: Final = 1.0
"""Below the client's socket timeout; also how long a stream outlives the wish to stop it."""
BATCH: Final = 500
BEGINNING: Final = "0-0"
_POSITION: Final = re.compile(r"\d{1,20}-\d{1,20}")

Entry = tuple[str, dict[str, str]]


async def entries(
    redis: Redis, key: str, after: str, *, follow: bool, closing: asyncio.Event
) -> AsyncIterator[list[Entry]]:
    """Yield a stream's entries in batches, in order.

    Args:
        redis: A client whose replies are bytes.
        key: Of the stream; one that is not there is empty.
        after: Id of the last entry that is known already, `BEGINNING` for none.
        follow: Go on, with an empty batch after the kept entries and whenever nothing came for `BLOCK_SECONDS`.
        closing: Ends it.

    Raises:
        UnavailableError: Redis is away.
    """
    waiting = False
    while not closing.is_set():
        block = int(BLOCK_SECONDS * 1000) if waiting else None
        with redis_errors():
            reply = await cast("Awaitable[Any]", redis.xread({key: after}, count=BATCH, block=block))
        batch = [_entry(raw) for raw in reply[0][1]] if reply else []
        waiting = not batch
        if batch:
            after = batch[-1][0]
        elif not follow:
            return
        yield batch


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

    def __init__(self, frames: AsyncIterator[bytes], counted: AbstractContextManager[None]) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(_kept_alive(frames, counted), media_type=CONTENT_EVENTS, headers=headers)


async def _kept_alive(frames: AsyncIterator[bytes], counted: AbstractContextManager[None]) -> AsyncIterator[bytes]:
    with counted:
        sent_at = time.monotonic()
        try:
            async for one in frames:
                if one:
                    yield one
                    sent_at = time.monotonic()
                elif time.monotonic() - sent_at >= KEEP_ALIVE_SECONDS:
                    yield b": keep-alive\n\n"
                    sent_at = time.monotonic()
        except BrineryError as error:
            yield b"event: error\ndata: " + error_body(error) + b"\n\n"


def _entry(raw: tuple[bytes, dict[bytes, bytes]]) -> Entry:
    entry_id, fields = raw
    return entry_id.decode(), {name.decode(): value.decode(errors="replace") for name, value in fields.items()}
