"""The slots of an endpoint's workers as one forwarder sees them: which worker gets the next task."""

from __future__ import annotations

import threading
import time
from typing import Final

from brinery_platform.routes import EndpointRoute, WorkerRoute

MAX_SLOTS: Final = 64
"""Tasks that one forwarder runs at once; its pool has as many threads."""


class Slots:
    """Hands out the worker with the fewest of our requests in flight; for threads.

    A worker that answered "busy" (the gateway sends requests to it too) rests for a moment before it is tried again.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._workers: dict[str, WorkerRoute] = {}
        self._concurrency = 1
        self._in_flight: dict[str, int] = {}
        self._rests_until: dict[str, float] = {}
        self.last_at = 0.0
        """When a slot was last taken or given back, seconds since the epoch; 0 for never."""

    def update(self, route: EndpointRoute | None) -> None:
        """Take over what the routing table says now; None is an endpoint that is not in it."""
        with self._changed:
            self._workers = {worker.id: worker for worker in route.workers} if route else {}
            self._concurrency = route.spec.concurrency if route else 1
            self._rests_until = {
                worker: until for worker, until in self._rests_until.items() if worker in self._workers
            }
            self._changed.notify_all()

    @property
    def size(self) -> int:
        """How many tasks the ready workers can run at once, at least 1 and at most `MAX_SLOTS`."""
        with self._changed:
            return max(1, min(MAX_SLOTS, self._concurrency * len(self._workers)))

    @property
    def in_flight(self) -> int:
        """How many slots are handed out."""
        with self._changed:
            return sum(self._in_flight.values())

    @property
    def workers(self) -> frozenset[str]:
        """Base URLs of the workers in the table."""
        with self._changed:
            return frozenset(worker.url for worker in self._workers.values())

    def acquire(self, timeout_seconds: float) -> WorkerRoute | None:
        """Wait for a free slot and take it; give it back with `release`.

        Args:
            timeout_seconds: How long to wait; 0 does not.

        Returns:
            The slot's worker, or None when the time is over.
        """
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            while True:
                now = time.monotonic()
                worker = self._pick(now)
                if worker is not None:
                    self._in_flight[worker.id] = self._in_flight.get(worker.id, 0) + 1
                    self.last_at = time.time()
                    return worker
                wakes = min([deadline, *(until for until in self._rests_until.values() if until > now)])
                if now >= deadline:
                    return None
                self._changed.wait(wakes - now)

    def release(self, worker: WorkerRoute, *, rest_seconds: float = 0.0) -> None:
        """Give a slot back.

        Args:
            worker: What `acquire` returned.
            rest_seconds: How long the worker is not to be tried again, because it was busy or could not be reached.
        """
        with self._changed:
            self.last_at = time.time()
            left = self._in_flight.get(worker.id, 1) - 1
            if left > 0:
                self._in_flight[worker.id] = left
            else:
                self._in_flight.pop(worker.id, None)
            if rest_seconds > 0:
                self._rests_until[worker.id] = time.monotonic() + rest_seconds
            self._changed.notify_all()

    def wake(self) -> None:
        """Let every waiter look again; for the end of the process."""
        with self._changed:
            self._changed.notify_all()

    def _pick(self, now: float) -> WorkerRoute | None:
        free = [
            worker
            for worker in self._workers.values()
            if self._in_flight.get(worker.id, 0) < self._concurrency and self._rests_until.get(worker.id, 0.0) <= now
        ]
        return min(free, key=lambda worker: self._in_flight.get(worker.id, 0), default=None)
