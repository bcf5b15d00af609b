"""Many calls with their results in order: a bounded number of tasks is open, submitted and awaited side by side."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final, TypeVar

from brinery.errors import BrineryError, OverloadedError
from brinery.future import SUBMIT_PATIENCE_SECONDS, Future
from brinery.loop_thread import LoopThread

T = TypeVar("T")

MAP_AHEAD: Final = 64
"""How many tasks a map keeps open ahead of the result that it yields next."""
FULL_PAUSE_SECONDS: Final = 1.0
"""When to try again after a refusal that does not say when."""
CANCEL_SECONDS: Final = 5.0
"""How long an open task of a map that is over may take to be cancelled."""

Submit = Callable[[], Awaitable[Future]]


def in_order(submits: Iterator[Submit]) -> Iterator[Any]:
    """Yield the result of each submission, in their order.

    Args:
        submits: Taken as results are consumed, in the caller's thread; each is awaited in a thread with a loop.
    """
    with LoopThread() as loop:
        calls: deque[concurrent.futures.Future[Any]] = deque()
        room = _Room()
        for submit in submits:
            calls.append(loop.start(partial(_answer, submit, room)))
            while calls and (len(calls) >= MAP_AHEAD or calls[0].done()):
                yield calls.popleft().result()
        while calls:
            yield calls.popleft().result()


async def ain_order(submits: AsyncIterable[Submit]) -> AsyncGenerator[Any]:
    """Do what `in_order` does, on the running event loop."""
    calls: deque[asyncio.Task[Any]] = deque()
    room = _Room()
    try:
        async for submit in submits:
            calls.append(asyncio.create_task(_answer(submit, room)))
            while calls and (len(calls) >= MAP_AHEAD or calls[0].done()):
                yield await calls.popleft()
        while calls:
            yield await calls.popleft()
    finally:
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def each(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    """Yield the items of either kind of iterable."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


class _Room:
    """The room for one map's tasks in the queue: where there is none, its calls wait in line, in their order.

    An endpoint may take fewer open tasks than a map would keep open. Then each end of one of its own makes room, and
    while it has none open itself it asks as often as the platform says, as long as a submission is repeated.
    """

    def __init__(self) -> None:
        self._line = asyncio.Lock()
        self._underway = 0
        self._open = 0
        self._changed = asyncio.Event()
        self._until = math.inf

    async def submit(self, submit: Submit) -> Future:
        """Submit a call, as soon as there is room.

        Raises:
            OverloadedError: Others fill the queue.
        """
        if not self._line.locked():
            self._underway += 1
            try:
                return await _submitted(submit)
            except OverloadedError:
                pass
            finally:
                self._underway -= 1
                self._changed.set()
        async with self._line:
            while self._underway:  # one of them may yet be the first that is open
                self._changed.clear()
                await self._changed.wait()
            while True:
                self._changed.clear()
                try:
                    return await _submitted(submit)
                except OverloadedError as error:
                    await self._wait(error)

    async def _wait(self, refusal: OverloadedError) -> None:
        pause = float(refusal.context.get("retry_after_seconds", FULL_PAUSE_SECONDS))
        now = time.monotonic()
        self._until = math.inf if self._open else min(self._until, now + SUBMIT_PATIENCE_SECONDS)
        if now + pause > self._until:
            raise refusal
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._changed.wait()

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Count a task as open."""
        self._open += 1
        self._until = math.inf
        try:
            yield
        finally:
            self._open -= 1
            self._changed.set()


async def _answer(submit: Submit, room: _Room) -> Any:
    """Submit a call and wait for its result; when that is cancelled, so is the task."""
    future = await room.submit(submit)
    with room.taken():
        try:
            return await future
        except asyncio.CancelledError:
            await _cancel_quietly(future)
            raise


async def _submitted(submit: Submit) -> Future:
    """Submit a call; when that is cancelled, so is the task that comes of it."""
    submission = asyncio.ensure_future(submit())
    try:
        return await asyncio.shield(submission)
    except asyncio.CancelledError:
        with contextlib.suppress(BrineryError, TimeoutError):
            async with asyncio.timeout(CANCEL_SECONDS):
                await _cancel_quietly(await submission)
        raise


async def _cancel_quietly(future: Future) -> None:
    try:
        async with asyncio.timeout(CANCEL_SECONDS):
            await future.acancel()
    except (BrineryError, TimeoutError):
        return  # the map is over already; a task that cannot be cancelled now ends by itself
