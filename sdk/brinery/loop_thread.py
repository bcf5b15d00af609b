"""An event loop in a thread of its own, for verbs without ``await`` that wait for many things at once."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """A loop that runs from ``with`` to its end, when what was started on it is cancelled and awaited.

    The thread is a daemon, so that an iterator left lying about keeps no interpreter from ending; then it is closed
    at exit.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="brinery-loop", daemon=True)
        self._started: set[asyncio.Task[Any]] = set()

    def __enter__(self) -> LoopThread:
        self._thread.start()
        atexit.register(self.close)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def start(self, function: Callable[[], Coroutine[Any, Any, T]]) -> concurrent.futures.Future[T]:
        """Call an async function on the loop and return what it will have returned."""

        async def run() -> T:
            if task := asyncio.current_task():
                self._started.add(task)
                task.add_done_callback(self._started.discard)
            return await function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop)

    def call(self, function: Callable[[], object]) -> None:
        """Call a function on the loop, soon."""
        self._loop.call_soon_threadsafe(function)

    def close(self) -> None:
        """Cancel what runs, wait until it has ended, and end the thread; closing twice does no harm.

        Called by the garbage collector in the loop's own thread, it cannot wait: then that happens soon.
        """
        atexit.unregister(self.close)
        if self._loop.is_closed() or not self._thread.is_alive():  # dead in a forked child
            return
        if threading.current_thread() is self._thread:
            ending = self._loop.create_task(self._end())
            ending.add_done_callback(lambda _task: self._loop.stop())
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _end(self) -> None:
        """Cancel what was started; then what that has left, for it may need its own tasks while it ends."""
        for task in (started := set(self._started)):
            task.cancel()
        await asyncio.gather(*started, return_exceptions=True)
        for task in (others := asyncio.all_tasks() - {asyncio.current_task()}):
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_asyncgens()
