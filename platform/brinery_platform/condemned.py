"""Workers without a supervisor: how a call of theirs is stopped, and how it is learnt what became of one.

Whoever wants a call stopped writes the worker and the reason into the hash ``condemned`` and wakes the controller,
which replaces the worker. Why a worker ended stays under ``end:<worker id>`` for as long as somebody may ask.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass
from typing import Final, cast

import orjson
import redis
from redis.asyncio import Redis as AsyncRedis

from brinery_platform.routes import WAKE

CONDEMNED: Final = "condemned"
REMEMBERED_SECONDS: Final = 600
END_SECONDS: Final = 3.0
"""How long it may take the controller to notice, and to say, that a worker has ended."""
LOOK_SECONDS: Final = 0.05
REST_SECONDS: Final = 10.0
"""How long a condemned worker is given nothing; by then it is gone, or the controller was not there to hear of it."""


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """Why a worker is to be replaced.

    Args:
        endpoint_id: Whose it is.
        request_id: The call that is to be stopped.
        reason: In a sentence without its full stop.
    """

    endpoint_id: str
    request_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class End:
    """Why a worker has ended.

    Args:
        reason: In a few words.
        request_id: The call for whose sake it was ended; ``""`` where it ended by itself.
    """

    reason: str
    request_id: str = ""


class Condemned:
    """The condemned workers as forwarders and the controller know them; every method may raise a `RedisError`.

    Args:
        client: The platform's Redis.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def add(self, worker_id: str, sentence: Sentence) -> None:
        """Have a worker replaced."""
        with self._client.pipeline() as pipeline:
            pipeline.hset(CONDEMNED, worker_id, orjson.dumps(asdict(sentence)))
            pipeline.publish(WAKE, sentence.endpoint_id)
            pipeline.execute()

    def read(self) -> dict[str, Sentence]:
        """Return all that are condemned, by the worker's id."""
        found = cast("dict[bytes, bytes]", self._client.hgetall(CONDEMNED))
        return {worker_id.decode(): Sentence(**orjson.loads(raw)) for worker_id, raw in found.items()}

    def remove(self, worker_id: str) -> None:
        """Forget a sentence that was carried out."""
        self._client.hdel(CONDEMNED, worker_id)

    def note_end(self, worker_id: str, end: End) -> None:
        """Say why a worker has ended, to whoever had a call there."""
        self._client.set(_key(worker_id), orjson.dumps(asdict(end)), ex=REMEMBERED_SECONDS)

    def end_of(self, worker_id: str) -> End | None:
        """Return why a worker has ended; None if after `END_SECONDS` nothing was said of it."""
        give_up_at = time.monotonic() + END_SECONDS
        while True:
            raw = cast("bytes | None", self._client.get(_key(worker_id)))
            if raw is not None:
                return End(**orjson.loads(raw))
            if time.monotonic() >= give_up_at:
                return None
            time.sleep(LOOK_SECONDS)  # the connection ends a moment before the controller hears of it


async def condemn(client: AsyncRedis, worker_id: str, sentence: Sentence) -> None:
    """Do what `Condemned.add` does, on the running event loop."""
    await client.hset(CONDEMNED, worker_id, orjson.dumps(asdict(sentence)).decode())
    await client.publish(WAKE, sentence.endpoint_id)


async def end_of(client: AsyncRedis, worker_id: str) -> End | None:
    """Do what `Condemned.end_of` does, on the running event loop; looks less and less often, for many may wait."""
    pause, give_up_at = LOOK_SECONDS, time.monotonic() + END_SECONDS
    while True:
        raw = cast("bytes | None", await client.get(_key(worker_id)))
        if raw is not None:
            return End(**orjson.loads(raw))
        if time.monotonic() >= give_up_at:
            return None
        await asyncio.sleep(pause)
        pause *= 2


def _key(worker_id: str) -> str:
    return f"end:{worker_id}"
