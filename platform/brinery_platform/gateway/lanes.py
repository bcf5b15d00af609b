"""One endpoint's workers as this gateway sees them: who has a free slot, and who waits for one."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from brinery.errors import BrineryError, OverloadedError
from brinery.spec import MAX_HELD_REQUESTS
from brinery_platform.routes import EndpointRoute, WorkerRoute


class Worker:
    """One worker: where it is, and how many requests of this gateway it has."""

    __slots__ = ("control_url", "id", "in_flight", "not_before", "on_cancel", "predict_path", "stream_path", "url")

    def __init__(self, route: WorkerRoute) -> None:
        self.id = route.id
        self.url = route.url
        self.control_url = route.control_url
        self.predict_path = route.predict_path
        self.stream_path = route.stream_path
        self.on_cancel = route.on_cancel
        self.in_flight = 0
        self.not_before = 0.0  # loop time until which it is given nothing


class Lane:
    """The slots of one endpoint and the requests that wait for them, first come, first served.

    Belongs to the event loop's thread, like everything on the hot path: there are no locks.

    Args:
        route: The endpoint as the routing table has it.
        listed: Whether the routing table has it; False for one found in SQL before the controller wrote it.
    """

    def __init__(self, route: EndpointRoute, *, listed: bool = True) -> None:
        self.route = route
        self.listed = listed
        self.workers: dict[str, Worker] = {}
        self._leaving: list[Worker] = []  # images that are in the table no more, and still at work
        self.in_flight = 0
        self.last_at = 0.0
        self._waiting: deque[asyncio.Future[Worker]] = deque()
        self._closed: Callable[[], BrineryError] | None = None
        self.update(route)

    @property
    def waiting(self) -> int:
        """How many requests wait here for a slot."""
        return len(self._waiting)

    def update(self, route: EndpointRoute) -> None:
        """Take over a newer route; whoever waits gets the slots it brings."""
        self.route = route
        before = self.workers
        self.workers = {worker.id: self._worker(worker) for worker in route.workers}
        gone = [worker for worker in before.values() if worker.id not in self.workers and not worker.control_url]
        self._leaving = [worker for worker in [*self._leaving, *gone] if worker.in_flight]
        self._serve()

    def at_images(self) -> dict[str, int]:
        """Return how many requests are at each worker that has no supervisor to say it."""
        found = [*self._leaving, *self.workers.values()]
        return {worker.id: worker.in_flight for worker in found if worker.in_flight and not worker.control_url}

    def _worker(self, route: WorkerRoute) -> Worker:
        known = self.workers.get(route.id)
        same = known is not None and known.url == route.url
        return known if known is not None and same else Worker(route)

    def take(self) -> Worker | None:
        """Return a slot of the worker with the fewest requests, or None if the request has to wait."""
        return None if self._waiting else self._take()

    def _take(self) -> Worker | None:
        limit = self.route.spec.concurrency
        now = asyncio.get_running_loop().time()
        best: Worker | None = None
        least = limit
        for worker in self.workers.values():
            if worker.in_flight < least and worker.not_before <= now:
                best, least = worker, worker.in_flight
        if best is not None:
            best.in_flight += 1
            self.in_flight += 1
        return best

    async def wait(self, *, first: bool = False) -> Worker:
        """Wait for a slot; the caller bounds the time by cancelling.

        Args:
            first: Stand at the head of the queue: this request had its turn and met a busy worker.

        Raises:
            OverloadedError: `MAX_HELD_REQUESTS` wait already.
            BrineryError: What `fail` was given.
        """
        if self._closed is not None:
            raise self._closed()
        if len(self._waiting) >= MAX_HELD_REQUESTS:
            raise OverloadedError(
                f"{MAX_HELD_REQUESTS} requests wait for {self.route.spec.name!r} already; try again shortly, raise "
                "max_workers, or submit it as a task.",
                endpoint=self.route.spec.name,
                retry_after_seconds=1,
            )
        future: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        if first:
            self._waiting.appendleft(future)
        else:
            self._waiting.append(future)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.release(future.result())  # the slot came in the same moment; the next one gets it
            else:
                with suppress(ValueError):  # it may have been passed over already
                    self._waiting.remove(future)
            raise

    def release(self, worker: Worker) -> None:
        """Give a slot that `take` or `wait` returned back, to whoever waits longest."""
        worker.in_flight -= 1
        self.in_flight -= 1
        self.last_at = time.time()
        if self._waiting:
            self._serve()

    def pause(self, worker: Worker, seconds: float) -> None:
        """Give `worker` nothing for a moment: it is busy with others' requests, or refuses connections."""
        loop = asyncio.get_running_loop()
        worker.not_before = loop.time() + seconds
        loop.call_later(seconds + 0.001, self._serve)

    def fail(self, error: Callable[[], BrineryError], *, closed: bool = False) -> None:
        """Let everybody who waits here raise what `error` makes.

        Args:
            error: Makes one error for each request: why there will be no slot.
            closed: Whoever comes later raises it, too: the endpoint is gone.
        """
        if closed:
            self._closed = error
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(error())

    def _serve(self) -> None:
        while self._waiting and (worker := self._take()) is not None:
            future = self._waiting.popleft()
            if future.done():  # cancelled in this very step of the loop
                worker.in_flight -= 1
                self.in_flight -= 1
            else:
                future.set_result(worker)
