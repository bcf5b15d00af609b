"""Redis channels followed for ever, and who waits for what they say about tasks."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from brinery.errors import OverloadedError, UnavailableError

RETRY_SECONDS: Final = 0.5
LINGER_SECONDS: Final = 10.0
"""Long enough that who waits for one task after the other does not subscribe each time."""
AGAIN_SECONDS: Final = 1.0
PATIENCE_SECONDS: Final = 60.0
"""How long who waits already is not told that Redis is away."""
MAX_WATCHED: Final = 300_000
"""Tasks of those who wait for several at once, together; some 300 bytes each."""

logger = structlog.get_logger(__name__)


@dataclass(kw_only=True)
class Listener:
    """Follows a channel over every loss of the connection.

    Args:
        redis: A client whose replies are bytes.
        channel: Its name.
        refresh: Called whenever the server confirms the subscription, because what was said before is lost.
        said: Called with each message.
        every_seconds: Call `refresh` so often, too: for a channel whose speaker may die between writing and speaking.
        quiet_seconds: After so long without a word, the server is asked whether it is still there.
        pong_seconds: How long it may take to answer.
    """

    redis: Redis
    channel: str
    refresh: Callable[[], Awaitable[None]]
    said: Callable[[str], Awaitable[None]]
    every_seconds: float = math.inf
    quiet_seconds: float = 15.0
    pong_seconds: float = 5.0
    _away: bool = field(default=False, init=False)

    async def run(self) -> None:
        """Listen for ever."""
        while True:
            try:
                await self._listen()
            except (RedisError, OSError) as error:
                if not self._away:
                    logger.warning("redis_is_away", channel=self.channel, error=str(error))
                self._away = True
                await asyncio.sleep(RETRY_SECONDS)

    async def _listen(self) -> None:
        """Listen until the connection breaks.

        Subscriptions are counted by what the server confirms, because the client library may mend a connection and
        subscribe again without saying so. It does not notice a connection over which nothing comes any more: its own
        health check sends a PING and expects no answer (redis-py 8, `asyncio/client.py`, `PubSub.check_health`; its
        issue 2417).
        """
        loop = asyncio.get_running_loop()
        async with self.redis.pubsub() as subscription:
            await subscription.subscribe(self.channel)
            refresh_at, quiet_at, asked = math.inf, loop.time() + self.pong_seconds, True
            while True:
                seconds = max(min(quiet_at, refresh_at) - loop.time(), 0.0)
                message = await subscription.get_message(timeout=seconds)
                if message is not None:
                    quiet_at, asked = loop.time() + self.quiet_seconds, False
                    if message["type"] == "message":
                        await self.said(message["data"].decode())
                        continue
                if loop.time() >= refresh_at or (message is not None and message["type"] == "subscribe"):
                    await self._refreshed()
                    refresh_at = loop.time() + self.every_seconds
                elif message is None and loop.time() >= quiet_at:
                    if asked:
                        raise RedisConnectionError(f"It has not answered for {self.pong_seconds:g} s.")
                    await subscription.ping()
                    quiet_at, asked = loop.time() + self.pong_seconds, True

    async def _refreshed(self) -> None:
        await self.refresh()
        if self._away:
            logger.info("redis_is_back", channel=self.channel)
        self._away = False


class Woken:
    """What one waiter learns: which of its tasks are worth a look.

    Args:
        task_ids: What it waits for; at first each of them is worth a look.
    """

    __slots__ = ("_event", "_failing_since", "_task_ids", "_worth_a_look")

    def __init__(self, task_ids: Collection[str]) -> None:
        self._task_ids = task_ids
        self._worth_a_look = set(task_ids)
        self._event = asyncio.Event()
        self._failing_since: float | None = None

    @contextmanager
    def looking(self) -> Iterator[set[str]]:
        """Give what is worth a look, once; a look that fails because Redis is away is made again a little later.

        Raises:
            UnavailableError: Every look of the last `PATIENCE_SECONDS` has failed.
        """
        try:
            yield self.take()
        except UnavailableError:
            loop = asyncio.get_running_loop()
            if self._failing_since is None:
                self._failing_since = loop.time()
            elif loop.time() - self._failing_since > PATIENCE_SECONDS:
                raise
            loop.call_later(AGAIN_SECONDS, self.wake_all)
        else:
            self._failing_since = None

    def take(self) -> set[str]:
        """Return what is worth a look, once: read the records after this."""
        taken, self._worth_a_look = self._worth_a_look, set()
        self._event.clear()
        return taken

    async def wait(self, seconds: float) -> bool:
        """Wait until something is worth a look; return False if so much time has passed before."""
        if not self._event.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._event.wait()
        return self._event.is_set()

    def wake(self, task_id: str) -> None:
        """Let the waiter look at one of its tasks."""
        self._worth_a_look.add(task_id)
        self._event.set()

    def wake_all(self) -> None:
        """Let the waiter look at all of its tasks."""
        self._worth_a_look.update(self._task_ids)
        self._event.set()


class Feed:
    """Wakes whoever waits for tasks that a channel names; one subscription for all of them, none while nobody waits.

    Whoever speaks on the channel writes the record in the same atomic step. Nothing is asked while nothing is said.

    Args:
        redis: A client whose replies are bytes.
        channel: Carries ids of tasks.
        linger_seconds: How long the subscription outlives the last who waited.

    Attributes:
        watched: How many tasks are waited for; one for which two wait counts twice.
    """

    def __init__(self, redis: Redis, channel: str, *, linger_seconds: float = LINGER_SECONDS) -> None:
        self._listener = Listener(redis=redis, channel=channel, refresh=self._refresh, said=self.said)
        self._linger_seconds = linger_seconds
        self._waiting: dict[str, set[Woken]] = {}
        self.watched = 0
        self._somebody = asyncio.Event()
        self._nobody = asyncio.Event()

    @contextmanager
    def watch(self, task_ids: Collection[str]) -> Iterator[Woken]:
        """Give what is woken whenever one of the tasks is worth another look.

        Watch first, then read the records: nothing falls between.

        Args:
            task_ids: Each of them once.

        Raises:
            OverloadedError: Those who wait for several tasks at once wait for `MAX_WATCHED` together.
        """
        if len(task_ids) > 1 and self.watched + len(task_ids) > MAX_WATCHED:
            raise OverloadedError(
                f"{self.watched} tasks are waited for already; wait for fewer, or try again.", retry_after_seconds=5
            )
        woken = Woken(task_ids)
        for task_id in task_ids:
            self._waiting.setdefault(task_id, set()).add(woken)
        self.watched += len(task_ids)
        self._nobody.clear()
        self._somebody.set()
        try:
            yield woken
        finally:
            self.watched -= len(task_ids)
            for task_id in task_ids:
                waiting = self._waiting[task_id]
                waiting.discard(woken)
                if not waiting:
                    del self._waiting[task_id]
            if not self._waiting:
                self._somebody.clear()
                self._nobody.set()

    async def run(self) -> None:
        """Follow the channel for ever, whenever somebody waits."""
        while True:
            await self._somebody.wait()
            async with asyncio.TaskGroup() as group:
                following = group.create_task(self._listener.run())
                group.create_task(self._stop_when_idle(following))

    async def _stop_when_idle(self, following: asyncio.Task[None]) -> None:
        while not following.done() and self._waiting:
            await self._nobody.wait()
            await asyncio.sleep(self._linger_seconds)
        following.cancel()

    async def _refresh(self) -> None:
        self.wake_all()

    async def said(self, task_id: str) -> None:
        """Let everybody look again who waits for a task."""
        for woken in self._waiting.get(task_id, ()):
            woken.wake(task_id)

    def wake_all(self) -> None:
        """Let everybody look again."""
        for waiting in self._waiting.values():
            for woken in waiting:
                woken.wake_all()
