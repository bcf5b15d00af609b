"""Coroutines of user code: all on one event loop that lives in a thread of its own as long as the process."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import Any

from brinery_worker.slots import RequestStopped, Running


class Coroutines:
    """The event loop; its thread starts when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started: asyncio.AbstractEventLoop | None = None

    def run(self, coroutine: Coroutine[Any, Any, Any], running: Running | None) -> Any:
        """Run a coroutine on the loop and wait for it.

        Args:
            coroutine: Its context variables are those of the calling thread.
            running: The request it belongs to, to be stopped with it; None for load and unload.

        Raises:
            RequestStopped: The request was stopped and the coroutine has ended.
            BaseException: Whatever the coroutine raised.
        """
        ended = threading.Event()
        job = _Job(self._loop(), coroutine, running, ended.set)
        ended.wait()
        return job.result()

    def iterate(self, items: AsyncGenerator[Any, None], running: Running | None) -> Iterator[Any]:
        """Yield what an asynchronous generator yields, one step ahead of the reader at most.

        Closing the returned iterator closes the generator. All its steps run in one task, as ``anyio`` and
        ``asyncio.timeout`` need it.
        """
        loop = self._loop()
        arrived: queue.SimpleQueue[tuple[Any] | None] = queue.SimpleQueue()
        credit = asyncio.Semaphore(0)

        async def drive() -> None:
            async with contextlib.aclosing(items):
                async for item in items:
                    arrived.put((item,))
                    await credit.acquire()

        job = _Job(loop, drive(), running, lambda: arrived.put(None))
        try:
            while (entry := arrived.get()) is not None:
                job.detach()
                yield entry[0]
                job.attach()
                loop.call_soon_threadsafe(credit.release)
            job.result()
        finally:
            if not job.ended:
                job.cancel()
                while arrived.get() is not None:
                    pass

    def _loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._started is None:
                self._started = asyncio.new_event_loop()
                threading.Thread(target=_serve, args=(self._started,), name="user-event-loop", daemon=True).start()
            return self._started


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    while True:
        # A SystemExit in a task that user code started, or its loop.stop(), must not end everybody's loop.
        with contextlib.suppress(BaseException):
            loop.run_forever()


class _Job:
    """One task on the loop, as the thread that waits for it sees it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        coroutine: Coroutine[Any, Any, Any],
        running: Running | None,
        on_end: Callable[[], None],
    ) -> None:
        self.ended = False
        self._loop = loop
        self._coroutine = coroutine
        self._running = running
        self._on_end = on_end
        self._task: asyncio.Task[tuple[Any, BaseException | None]] | None = None
        self._cancelled = False
        self.attach()
        loop.call_soon_threadsafe(self._start)

    def attach(self) -> None:
        """Have a stop of the request end the task; a stop that came just before counts too."""
        if self._running is not None:
            self._running.cancel_coroutine = self.cancel
            if self._running.stopped:
                self.cancel()

    def detach(self) -> None:
        """Leave the stopping of the request to others, while this thread does not wait for the task."""
        if self._running is not None:
            self._running.cancel_coroutine = None

    def cancel(self) -> None:
        """Cancel the task, started or not."""
        self._cancelled = True
        self._loop.call_soon_threadsafe(self._cancel)

    def result(self) -> Any:
        """Return what the ended task returned, or raise what it raised."""
        assert self._task is not None  # noqa: S101 - it has ended, so it was started
        if self._running is not None and self._running.stopped and self._task.cancelled():
            raise RequestStopped
        outcome, error = self._task.result()
        if error is not None:
            raise error
        return outcome

    async def _guard(self) -> tuple[Any, BaseException | None]:
        try:
            return await self._coroutine, None
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit too is the request's failure, not the loop's end
            return None, error

    def _start(self) -> None:
        self._task = self._loop.create_task(self._guard())
        self._task.add_done_callback(self._end)
        if self._cancelled:
            self._task.cancel()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _end(self, _task: asyncio.Task[Any]) -> None:
        self.detach()
        self.ended = True
        self._on_end()
