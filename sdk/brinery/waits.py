"""Waiting on an event loop: a few waits ask for one task each, many share streams of tasks as they become final."""

from __future__ import annotations

import asyncio
import copy
import math
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from numbers import Real
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from brinery.errors import (
    BrineryError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
    UpstreamTimeoutError,
    error_from_json,
)

if TYPE_CHECKING:
    from brinery.client import Client
    from brinery.routes import Request

WAIT_PATIENCE_SECONDS: Final = 600.0
"""How long the gateway may be away, without a break, before whoever waits gives up."""
MAX_STREAM_IDS: Final = 10_000
"""How many tasks one stream may follow."""
DIRECT_POLLS: Final = 16
"""How many waits of one loop ask for one task each; those beyond share streams."""
BATCH_SECONDS: Final = 0.005
"""How long a new wait stands by for others that can go into the same stream."""
SHORT_SECONDS: Final = 1.0
"""Waits shorter than this ask for themselves: they are over before a stream would be worth it."""

_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 5.0

Deliver = Callable[[str, dict[str, Any] | None], Awaitable[None]]
"""Takes a task's id and its final record, None where the gateway knows no such task."""


async def follow(
    client: Client, left: set[str], deliver: Deliver, *, patience_seconds: float = WAIT_PATIENCE_SECONDS
) -> None:
    """Deliver each task's record as it becomes final, until none is left.

    A connection that is lost is opened anew for what is left, so a gateway that restarts does no harm.

    Args:
        client: Whom to ask.
        left: Ids, at most `MAX_STREAM_IDS`; each is taken out before it is delivered.
        deliver: Awaited for each, so that a slow taker slows the stream.
        patience_seconds: How long the gateway may be away, or answer nothing but such errors, without a break.

    Raises:
        UnavailableError: The gateway has been away so long.
        OverloadedError: So long it had too much to do.
        BrineryError: It refuses to be asked.
    """
    away_since, fruitless = math.inf, 0
    while left:
        asked, said, opened, asked_at = list(left), 0, False, time.monotonic()
        loss: BrineryError | None = None
        try:
            async with aclosing(client.task_events(asked)) as events:
                async for event, data in events:
                    if event == "error":
                        opened = False
                        raise error_from_json(data)
                    opened = True
                    said += event != "open"
                    if (task_id := data.get("id")) in left:
                        left.discard(task_id)
                        await deliver(task_id, None if event == "missing" else data)
                    if not left and said < len(asked):
                        return  # what is not said yet has been withdrawn; otherwise the gateway ends the stream
        except (UnavailableError, UpstreamTimeoutError, OverloadedError) as error:
            loss = error
        now = time.monotonic()
        if loss is None or opened or said or now - asked_at > patience_seconds:
            away_since = math.inf
        elif now - (away_since := min(away_since, asked_at)) > patience_seconds:
            raise loss
        fruitless = 0 if said else fruitless + 1
        pause = min(_FIRST_PAUSE_SECONDS * 2**fruitless, _LONGEST_PAUSE_SECONDS)
        if loss is not None:
            pause = max(pause, float(loss.context.get("retry_after_seconds", 0.0)))
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads the returns, guards nothing


def deadline(timeout: float | None) -> float:
    """Return the time by `time.monotonic` at which a wait of `timeout` seconds that begins now is over.

    Raises:
        TypeError: `timeout` is neither a number nor None.
        InvalidRequestError: It is nan.
    """
    if timeout is None:
        return math.inf
    if isinstance(timeout, bool) or not isinstance(timeout, Real):
        raise TypeError(f"timeout is a number of seconds, or None to wait as long as it takes, not {timeout!r}.")
    if math.isnan(timeout):
        raise InvalidRequestError("timeout is nan, no number of seconds; give None to wait as long as it takes.")
    return time.monotonic() + timeout


def missing(task_id: str) -> NotFoundError:
    """Return the error for a task that the gateway does not know."""
    return NotFoundError(f"There is no task {task_id!r}; it may have been forgotten.", task_id=task_id)


class _Stream:
    """A shared stream.

    Args:
        left: Ids that somebody waits for and that are not final; the stream's task takes them out.
    """

    def __init__(self, left: set[str]) -> None:
        self.left = left
        self.task: asyncio.Task[None]


class Waits:
    """All waits of one event loop on one client.

    A new batch of ids opens a stream of its own. Streams that are no larger are closed and go into it, so that there
    are never more than about log2(ids) of them, and an id is asked for about as many times.

    Args:
        client: Whom to ask.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._polls = 0
        self._waiters: dict[str, set[asyncio.Future[dict[str, Any]]]] = {}
        self._fresh: set[str] = set()
        self._streams: set[_Stream] = set()
        self._opening: asyncio.TimerHandle | None = None

    async def look(
        self, task_id: str, poll: Callable[[], Request], *, seconds: float, patience_seconds: float
    ) -> dict[str, Any] | None:
        """Wait for a task.

        Args:
            task_id: ``tsk_…``.
            poll: Makes the long-poll that a single wait sends.
            seconds: How long to wait; infinity for as long as it takes.
            patience_seconds: How long a long-poll is repeated while the gateway is away.

        Returns:
            Its record, final or as it stood when a long-poll was over; None when the time was over first.

        Raises:
            BrineryError: As `follow`; `NotFoundError` for a task that the gateway does not know.
        """
        if self._polls >= DIRECT_POLLS and seconds >= SHORT_SECONDS:
            return await self._share(task_id, seconds)
        self._polls += 1
        try:
            return dict((await self._client.asend_patiently(poll, patience_seconds)).json())
        finally:
            self._polls -= 1

    async def _share(self, task_id: str, seconds: float) -> dict[str, Any] | None:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[dict[str, Any]] = loop.create_future()
        if task_id not in self._waiters:
            self._waiters[task_id] = set()
            self._fresh.add(task_id)
            self._opening = self._opening or loop.call_later(BATCH_SECONDS, self._open)
        self._waiters[task_id].add(waiter)
        try:
            async with asyncio.timeout(None if math.isinf(seconds) else seconds):
                return await waiter
        except TimeoutError:
            return None
        finally:
            self._leave(task_id, waiter)
            if not self._waiters:
                await self._end()

    def _leave(self, task_id: str, waiter: asyncio.Future[dict[str, Any]]) -> None:
        """Forget a wait that is over, and its task with the last one that was for it."""
        waiters = self._waiters.get(task_id)
        if waiters is None or waiter not in waiters:
            return
        waiters.remove(waiter)
        if waiters:
            return
        del self._waiters[task_id]
        self._fresh.discard(task_id)
        for stream in self._streams:
            if task_id in stream.left:
                stream.left.remove(task_id)
                if not stream.left:
                    stream.task.cancel()

    async def _end(self) -> None:
        """Wait until the streams, which nobody needs any more, are closed: nothing of them may outlive the loop."""
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
        ending, self._streams = self._streams, set()
        if ending:
            await asyncio.wait([stream.task for stream in ending])

    def _open(self) -> None:
        self._opening = None
        fresh, self._fresh = list(self._fresh), set()
        for start in range(0, len(fresh), MAX_STREAM_IDS):
            self._start(set(fresh[start : start + MAX_STREAM_IDS]))

    def _start(self, left: set[str]) -> None:
        for smaller in sorted(self._streams, key=lambda stream: len(stream.left)):
            if len(smaller.left) > len(left) or len(smaller.left) + len(left) > MAX_STREAM_IDS:
                break
            if smaller.left:
                left |= smaller.left
                smaller.left.clear()
                smaller.task.cancel()
        stream = _Stream(left)
        stream.task = asyncio.get_running_loop().create_task(follow(self._client, left, self._deliver))
        stream.task.add_done_callback(lambda task: self._ended(stream, task))
        self._streams.add(stream)

    async def _deliver(self, task_id: str, record: dict[str, Any] | None) -> None:
        for waiter in self._waiters.pop(task_id, ()):
            if waiter.done():
                continue
            if record is None:
                waiter.set_exception(missing(task_id))
            else:
                waiter.set_result(record)

    def _ended(self, stream: _Stream, task: asyncio.Task[None]) -> None:
        self._streams.discard(stream)
        error = None if task.cancelled() else task.exception()
        for task_id in stream.left if error is not None else ():
            for waiter in self._waiters.pop(task_id, ()):
                if not waiter.done():
                    waiter.set_exception(copy.copy(error))  # type: ignore[arg-type]  # it is not None in this loop


_WAITS: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Client, Waits]]] = WeakKeyDictionary()


def shared_waits(client: Client) -> Waits:
    """Return the waits of the running event loop on this client."""
    of_loop = _WAITS.setdefault(asyncio.get_running_loop(), {})
    if (waits := of_loop.get(client)) is None:
        waits = of_loop.setdefault(client, Waits(client))
    return waits
