"""Futures in the order in which their tasks become final: `as_completed`, for ``for`` and for ``async for``."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from brinery.future import Future
from brinery.loop_thread import LoopThread
from brinery.waits import MAX_STREAM_IDS, deadline, follow, missing

if TYPE_CHECKING:
    from brinery.client import Client

RECORDS_AHEAD: Final = 64
"""How many records may have come that the loop over the futures has not taken yet."""

_Arrival = tuple["Client", str, dict[str, Any] | None]


def as_completed(futures: Iterable[Future], timeout: float | None = None) -> Completed:
    """Yield each future when its task is final; its `Future.get` then answers at once.

    Up to 10,000 tasks share one connection. A gateway that restarts meanwhile does no harm.

    Args:
        futures: Any number; a future that is given twice is yielded once.
        timeout: Seconds from now until the last must be final; None waits for as long as it takes.

    Returns:
        An iterator for ``for`` or for ``async for``. Leaving the loop early lets the tasks go on.

    Raises:
        TimeoutError: While iterating: the time is over; the tasks go on.
        NotFoundError: While iterating: there is no such task; the text names its id.
        UnavailableError: While iterating: the gateway has been away for ten minutes.
        TypeError: Something is no future, or `timeout` is no number.
    """
    return Completed(_Pending(futures, timeout))


class Completed:
    """What `as_completed` returns.

    Args:
        pending: What is waited for.
    """

    def __init__(self, pending: _Pending) -> None:
        # The generators know nothing of this object: with the last reference to it they are closed at once.
        self._here = _iterate(pending)
        self._on_a_loop = _aiterate(pending)

    def __iter__(self) -> Iterator[Future]:
        return self._here

    def __next__(self) -> Future:
        return next(self._here)

    def __aiter__(self) -> AsyncIterator[Future]:
        return self._on_a_loop

    async def __anext__(self) -> Future:
        return await anext(self._on_a_loop)


class _Pending:
    """The futures that have not been yielded."""

    def __init__(self, futures: Iterable[Future], timeout: float | None) -> None:
        self._until = deadline(timeout)
        self._known: list[Future] = []
        self._open: dict[Client, dict[str, list[Future]]] = {}
        unique = dict.fromkeys(futures)
        for future in unique:
            if not isinstance(future, Future):
                raise TypeError(f"as_completed takes futures, not {future!r}; Future.from_id makes one of a task's id.")
            if future.final_record is not None:
                self._known.append(future)
            else:
                self._open.setdefault(future.client, {}).setdefault(future.id, []).append(future)
        self._total = self._left = len(unique)

    def __bool__(self) -> bool:
        return self._left > 0

    def known(self) -> Iterator[Future]:
        """Take out those that are known here to be final."""
        self._known.reverse()
        while self._known:
            self._left -= 1
            yield self._known.pop()

    def take(self, arrival: _Arrival) -> list[Future]:
        """Take out the futures of a task that has become final."""
        client, task_id, record = arrival
        if record is None:
            raise missing(task_id)
        futures = self._open[client].pop(task_id)
        self._left -= len(futures)
        for future in futures:
            future.note(record)
        return futures

    def seconds(self) -> float | None:
        """Return how long the rest may take; None for as long as it takes."""
        return None if math.isinf(self._until) else max(0.0, self._until - time.monotonic())

    def too_late(self) -> TimeoutError:
        """Return the error of a deadline that has passed."""
        return TimeoutError(f"{self._left} of {self._total} tasks are not finished in time; they go on.")

    async def arrive(self, put: Callable[[_Arrival], None], room: asyncio.Semaphore) -> None:
        """Put each final record where it is waited for, as soon as there is room."""

        async def deliver(client: Client, task_id: str, record: dict[str, Any] | None) -> None:
            await room.acquire()
            put((client, task_id, record))

        streams = [
            asyncio.ensure_future(follow(client, ids, partial(deliver, client))) for client, ids in self._chunks()
        ]
        try:
            done, _ = await asyncio.wait(streams, return_when=asyncio.FIRST_EXCEPTION)
            for stream in done:
                stream.result()
        finally:
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*streams, return_exceptions=True)

    def _chunks(self) -> Iterator[tuple[Client, set[str]]]:
        for client, futures in self._open.items():
            ids = list(futures)
            for start in range(0, len(ids), MAX_STREAM_IDS):
                yield client, set(ids[start : start + MAX_STREAM_IDS])


def _iterate(pending: _Pending) -> Generator[Future]:
    yield from pending.known()
    if not pending:
        return
    arrivals: SimpleQueue[_Arrival | None] = SimpleQueue()
    room = asyncio.Semaphore(RECORDS_AHEAD)
    with LoopThread() as loop:
        arriving = loop.start(partial(pending.arrive, arrivals.put, room))
        arriving.add_done_callback(lambda _: arrivals.put(None))
        while pending:
            try:
                arrival = arrivals.get(timeout=pending.seconds())
            except Empty:
                raise pending.too_late() from None
            if arrival is None:
                arriving.result()
                return
            loop.call(room.release)
            yield from pending.take(arrival)


async def _aiterate(pending: _Pending) -> AsyncGenerator[Future]:
    for future in pending.known():
        yield future
    if not pending:
        return
    arrivals: asyncio.Queue[_Arrival | None] = asyncio.Queue()
    room = asyncio.Semaphore(RECORDS_AHEAD)
    arriving = asyncio.ensure_future(pending.arrive(arrivals.put_nowait, room))
    arriving.add_done_callback(lambda _: arrivals.put_nowait(None))
    try:
        while pending:
            try:
                arrival = (
                    await asyncio.wait_for(arrivals.get(), pending.seconds())
                    if arrivals.empty()
                    else arrivals.get_nowait()
                )
            except TimeoutError:
                raise pending.too_late() from None
            if arrival is None:
                arriving.result()
                return
            room.release()
            for future in pending.take(arrival):
                yield future
    finally:
        arriving.cancel()
        await asyncio.gather(arriving, return_exceptions=True)
