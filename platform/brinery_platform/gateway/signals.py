"""Redis channels followed for ever, and who waits for what they say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from brinery_platform.tasks import DONE

REFRESH_SECONDS: Final = 10.0
"""How often everything is read again although nothing was said: whoever speaks may die between writing and speaking."""
RETRY_SECONDS: Final = 0.5

logger = structlog.get_logger(__name__)


async def listen(
    redis: Redis,
    channel: str,
    *,
    refresh: Callable[[], Awaitable[None]],
    said: Callable[[str], Awaitable[None]],
) -> None:
    """Follow a channel for ever, over every loss of the connection.

    Args:
        redis: A client whose replies are bytes.
        channel: Its name.
        refresh: Called after each subscribing, because what was said before is lost, and every `REFRESH_SECONDS`.
        said: Called with each message.
    """
    connected = True
    while True:
        try:
            async with redis.pubsub(ignore_subscribe_messages=True) as subscription:
                await subscription.subscribe(channel)
                refresh_at = 0.0
                while True:
                    if time.monotonic() >= refresh_at:
                        await refresh()
                        refresh_at = time.monotonic() + REFRESH_SECONDS
                        if not connected:
                            logger.info("redis_is_back", channel=channel)
                        connected = True
                    message = await subscription.get_message(timeout=max(refresh_at - time.monotonic(), 0.0))
                    if message is not None:
                        await said(message["data"].decode())
        except (RedisError, OSError) as error:
            if connected:
                logger.warning("redis_is_away", channel=channel, error=str(error))
            connected = False
            await asyncio.sleep(RETRY_SECONDS)


class DoneFeed:
    """Wakes whoever waits for a task's end; one subscription for all of them.

    Args:
        redis: A client whose replies are bytes.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def watch(self, task_id: str) -> Iterator[asyncio.Event]:
        """Give an event that is set when the task's record is worth reading again.

        Watch first, then read the record: nothing falls between.
        """
        event = asyncio.Event()
        self._waiting.setdefault(task_id, set()).add(event)
        try:
            yield event
        finally:
            self._waiting[task_id].discard(event)
            if not self._waiting[task_id]:
                del self._waiting[task_id]

    async def run(self) -> None:
        """Follow the channel for ever."""
        await listen(self._redis, DONE, refresh=self._refresh, said=self._wake)

    async def _refresh(self) -> None:
        self.wake_all()

    async def _wake(self, task_id: str) -> None:
        for event in self._waiting.get(task_id, ()):
            event.set()

    def wake_all(self) -> None:
        """Let everybody look again."""
        for events in self._waiting.values():
            for event in events:
                event.set()
