"""The workers' output, line by line, from wherever the runtime keeps it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, suppress
from typing import Final

from brinery.errors import UnavailableError
from brinery_platform.runtimes.base import Running, Visible

LOOK_SECONDS: Final = 1.0
"""How often a follower looks for new workers, and whether it is to end."""
MAX_WAITING_LINES: Final = 10_000
"""Lines that wait for one slow client; above it, new ones are dropped."""

NO_WORKERS: Final = "(the controller does not answer, so nobody can say what the workers print; try again)\n"

_Queue = asyncio.Queue[tuple[str, str]]


class WorkerLogs:
    """Reads the output of workers; one thread for each worker that anybody follows.

    Args:
        open_runtime: Makes the runtime; called when logs are first asked for.
        closing: Ends every follower.
    """

    def __init__(self, open_runtime: Callable[[], Visible], closing: asyncio.Event) -> None:
        self._open_runtime = open_runtime
        self._closing = closing
        self._runtime: Visible | None = None
        self._lock = threading.Lock()  # guards the two below, shared with the reading threads
        self._followers: dict[str, set[_Queue]] = {}
        self._read: set[str] = set()

    async def last(self, endpoint_id: str, tail: int) -> AsyncIterator[str]:
        """Yield the last `tail` lines of each running worker of an endpoint."""
        try:
            workers = await asyncio.to_thread(self._workers, endpoint_id)
        except UnavailableError:
            yield NO_WORKERS
            return
        for worker in workers:
            for line in await asyncio.to_thread(self._last, worker.id, tail):
                yield _shown(worker.id, line)

    async def follow(self, endpoint_id: str, tail: int, counted: AbstractContextManager[None]) -> AsyncIterator[str]:
        """Yield the last `tail` lines of each worker, then new lines of these and of new workers, for ever.

        Args:
            endpoint_id: ``end_…``.
            tail: Lines of the past, for each worker.
            counted: Held open meanwhile.
        """
        queue: _Queue = asyncio.Queue(MAX_WAITING_LINES)
        joined: set[str] = set()
        look_at = 0.0
        with counted:
            try:
                while not self._closing.is_set():
                    if time.monotonic() >= look_at:
                        for worker in await asyncio.to_thread(self._workers_now, endpoint_id):
                            if worker.id not in joined:
                                joined.add(worker.id)
                                if not self._join(worker.id, queue, tail):
                                    for line in await asyncio.to_thread(self._last, worker.id, tail):
                                        yield _shown(worker.id, line)
                        look_at = time.monotonic() + LOOK_SECONDS
                    with suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_SECONDS):
                            yield _shown(*await queue.get())
            finally:
                with self._lock:
                    for worker_id in joined:
                        self._followers[worker_id].discard(queue)
                        if not self._followers[worker_id]:
                            del self._followers[worker_id]

    def close(self) -> None:
        """Let the runtime go; the workers go on."""
        if self._runtime is not None:
            self._runtime.close()

    def _open(self) -> Visible:
        with self._lock:
            self._runtime = self._runtime or self._open_runtime()
            return self._runtime

    def _workers(self, endpoint_id: str) -> list[Running]:
        running = self._open().list()
        return [one for one in running if one.kind == "worker" and one.endpoint_id == endpoint_id]

    def _workers_now(self, endpoint_id: str) -> list[Running]:
        """Return no new ones while nobody can say: a follower waits."""
        try:
            return self._workers(endpoint_id)
        except UnavailableError:
            return []

    def _last(self, worker_id: str, tail: int) -> list[str]:
        return list(self._open().logs(worker_id, tail=tail))

    def _join(self, worker_id: str, queue: _Queue, tail: int) -> bool:
        """Add a follower; return whether it is the first one, whose queue gets the past as well."""
        with self._lock:
            self._followers.setdefault(worker_id, set()).add(queue)
            if worker_id in self._read:
                return False
            self._read.add(worker_id)
        threading.Thread(target=self._read_on, args=(worker_id, tail, asyncio.get_running_loop()), daemon=True).start()
        return True

    def _read_on(self, worker_id: str, tail: int, loop: asyncio.AbstractEventLoop) -> None:
        """Read until the worker ends, or a line comes that nobody wants any more."""
        for line in self._open().logs(worker_id, tail=tail, follow=True):
            with self._lock:
                queues = list(self._followers.get(worker_id, ()))
                if not queues:
                    self._read.discard(worker_id)  # in the same step, or a follower that comes now waits in vain
                    return
            with suppress(RuntimeError):  # the loop has ended, and this thread with its process
                loop.call_soon_threadsafe(_deliver, queues, worker_id, line)
        with self._lock:
            self._read.discard(worker_id)


def _deliver(queues: list[_Queue], worker_id: str, line: str) -> None:
    for queue in queues:
        with suppress(asyncio.QueueFull):
            queue.put_nowait((worker_id, line))


def _shown(worker_id: str, line: str) -> str:
    return f"{worker_id} | {line}\n"
