"""Ends a request early: at its deadline, or when the client hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from starlette.types import Receive

LOOK_AFTER_SECONDS: Final = 0.05
"""Requests that end before this are never looked after: a task for each of them would cost more than they do."""


class Watch:
    """Cancels the current task at a deadline or when the client hangs up, and says which it was.

    Begin it when the request's body has been read: it takes what `receive` gives from then on.

    Args:
        receive: ASGI's.
        seconds: Time until the deadline; > 0.
    """

    __slots__ = ("_deadline", "_loop", "_receive", "_timer", "_watcher", "expired", "hung_up", "task")

    def __init__(self, receive: Receive, seconds: float) -> None:
        task = asyncio.current_task()
        assert task is not None, "a request is always served by a task"  # noqa: S101 - for the type checker
        self.task = task
        self._loop = asyncio.get_running_loop()
        self._receive = receive
        self._deadline = self._loop.time() + seconds
        self._watcher: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(min(seconds, LOOK_AFTER_SECONDS), self._look_after)
        self.expired = False
        self.hung_up = False

    @property
    def seconds_left(self) -> float:
        """Time until the deadline."""
        return self._deadline - self._loop.time()

    def _look_after(self) -> None:
        self._watcher = self._loop.create_task(self._until_hung_up())
        self._timer = self._loop.call_at(self._deadline, self._expire)

    async def _until_hung_up(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self.expired:
            self.hung_up = True
            self.task.cancel()

    def _expire(self) -> None:
        if not self.hung_up:
            self.expired = True
            self.task.cancel()

    def close(self) -> None:
        """Stop watching; the request has ended."""
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()


class HangUp:
    """Notices that the client of a waiting request is gone; made when the request's body has been read.

    Args:
        receive: ASGI's; what it gives is taken from now on.
        wake: Called once when the client is gone.
    """

    __slots__ = ("_receive", "_wake", "_watcher", "gone")

    def __init__(self, receive: Receive, wake: Callable[[], None]) -> None:
        self._receive = receive
        self._wake = wake
        self.gone = False
        self._watcher = asyncio.get_running_loop().create_task(self._until_gone())

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self._wake()

    def close(self) -> None:
        """Stop watching; the request has ended."""
        self._watcher.cancel()
