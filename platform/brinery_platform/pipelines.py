"""Commands of many requests to Redis as few pipelines: what comes while one is on its way goes with the next.

A command alone costs an asyncio client about 0.3 ms of CPU and Redis one fsync; a hundred in one pipeline cost little
more than one (measured for `docs/performance.md`). A lone command waits for nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import redis.asyncio

AT_ONCE: Final = 4
"""Pipelines on their way at the same time, a connection each."""
MAX_COMMANDS: Final = 256

Argument = str | bytes | int | float
_Waiting = tuple[tuple[Argument, ...], "asyncio.Future[Any]"]


class Pipelines:
    """Sends commands for callers of one event loop.

    Args:
        redis: An asyncio client whose replies are bytes.
    """

    def __init__(self, redis: redis.asyncio.Redis) -> None:
        self._redis = redis
        self._waiting: deque[_Waiting] = deque()
        self._senders: set[asyncio.Task[None]] = set()

    async def command(self, *arguments: Argument) -> Any:
        """Run one command and return its reply; a caller that is cancelled does not stop it.

        Raises:
            redis.exceptions.RedisError: Redis did not answer, or refused this command.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((arguments, future))
        if len(self._senders) < AT_ONCE:
            self._senders.add(loop.create_task(self._send()))
        return await future

    async def _send(self) -> None:
        try:
            await self._send_all()
        finally:
            # In the step that found nothing waiting: whoever comes after it sees that a sender is missing.
            sender = asyncio.current_task()
            assert sender is not None, "it runs as a task"  # noqa: S101 - for the type checker
            self._senders.discard(sender)

    async def _send_all(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_COMMANDS))]
            try:
                replies = await self._execute([arguments for arguments, _ in batch])
            except Exception as error:  # noqa: BLE001 - whatever it is, it is every caller's answer
                replies = [error] * len(batch)
            except BaseException:
                for _, future in batch:
                    future.cancel()
                raise
            for (_, future), reply in zip(batch, replies, strict=True):
                if future.done():
                    continue  # its caller was cancelled
                if isinstance(reply, Exception):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)

    async def _execute(self, commands: list[tuple[Argument, ...]]) -> list[Any]:
        if len(commands) == 1:
            return [await self._redis.execute_command(*commands[0])]  # type: ignore[no-untyped-call]  # redis-py's
        async with self._redis.pipeline(transaction=False) as pipe:
            for arguments in commands:
                pipe.execute_command(*arguments)
            return list(await pipe.execute(raise_on_error=False))
