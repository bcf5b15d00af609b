"""The slots of an endpoint's workers as one forwarder sees them: which worker gets the next task."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from brinery_platform.routes import EndpointRoute, WorkerRoute

MAX_SLOTS: Final = 64
"""Tasks that one forwarder runs at once; its pool has as many threads."""
BROKEN_SECONDS: Final = 2.0
"""How long a request whose connection broke counts as company of those whose connection breaks with it."""


class Ticket:
    """The wish of one task to have a worker for itself; keeps that worker's slots from filling up again."""


@dataclass(frozen=True, eq=False)
class Slot:
    """Room for one task in a worker.

    Args:
        worker: Which one.
        size: How many of its slots are taken.
        whole: Whether these are all of them.
    """

    worker: WorkerRoute
    size: int
    whole: bool


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
        self._reserved: dict[str, Ticket] = {}
        self._broken_until: dict[str, float] = {}
        self._runs_images = False
        self.last_at = 0.0
        """When a slot was last taken or given back, seconds since the epoch; 0 for never."""

    def update(self, route: EndpointRoute | None) -> None:
        """Take over what the routing table says now; None is an endpoint that is not in it."""
        with self._changed:
            self._workers = {worker.id: worker for worker in route.workers} if route else {}
            self._concurrency = route.spec.concurrency if route else 1
            if self._workers:
                self._runs_images = any(not worker.control_url for worker in self._workers.values())
            for known in (self._rests_until, self._broken_until, self._reserved):
                for worker_id in known.keys() - self._workers.keys():
                    del known[worker_id]
            self._changed.notify_all()

    @property
    def size(self) -> int:
        """How many tasks the ready workers can run at once, at least 1 and at most `MAX_SLOTS`."""
        with self._changed:
            return max(1, min(MAX_SLOTS, self._concurrency * len(self._workers)))

    @property
    def prefetch(self) -> int:
        """How many messages to take at once: the slots, and some for while a result is stored and a slot is free.

        One only while there is no worker, and few beyond the slots, so that priorities are kept in the queue.
        """
        if not self._workers:
            return 1
        return min(MAX_SLOTS, self.size + 1 + self.size // 8)

    @property
    def in_flight(self) -> int:
        """How many slots are handed out."""
        with self._changed:
            return sum(self._in_flight.values())

    @property
    def at_images(self) -> dict[str, int]:
        """How many slots are handed out of each worker that has no supervisor to say it."""
        with self._changed:
            return dict(self._in_flight) if self._runs_images else {}

    @property
    def workers(self) -> frozenset[str]:
        """Base URLs of the workers in the table."""
        with self._changed:
            return frozenset(worker.url for worker in self._workers.values())

    def acquire(self, timeout_seconds: float, ticket: Ticket | None = None) -> Slot | None:
        """Wait for a free slot and take it; give it back with `release`.

        Args:
            timeout_seconds: How long to wait; 0 does not.
            ticket: Take all slots of one worker. Nobody else gets a slot of the worker that empties for it, until it
                is taken or the ticket is given to `abandon`.

        Returns:
            The slot, or None when the time is over.
        """
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            while True:
                now = time.monotonic()
                worker = self._pick(now) if ticket is None else self._pick_empty(now, ticket)
                if worker is not None:
                    size = 1 if ticket is None else self._concurrency
                    slot = Slot(worker, size, size == self._concurrency)
                    self._count(slot, 1)
                    self.last_at = time.time()
                    return slot
                if not self._wait(now, deadline):
                    return None

    def exchange(
        self, slot: Slot, timeout_seconds: float, *, rest_seconds: float, unless: Callable[[], bool]
    ) -> Slot | None:
        """Change a slot whose worker would not take the task for one of another worker, or keep it until the rest ends.

        The slot stays taken all the time: were it free for a moment, a second task would be claimed for it.

        Args:
            slot: What `acquire` returned.
            timeout_seconds: How long to wait.
            rest_seconds: How long the worker is not to be tried again, because it was busy or could not be reached.
            unless: Whether to stop waiting; asked again after each `wake`.

        Returns:
            The slot to go on with, instead of `slot`; None when the time is over or `unless` says so, and `slot` is
            still to be given back.
        """
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            self._rests_until[slot.worker.id] = time.monotonic() + rest_seconds
            while not unless():
                now = time.monotonic()
                self._count(slot, -1)
                worker = self._pick(now, slot)
                found = slot if worker is None else replace(slot, worker=worker)
                self._count(found, 1)
                if worker is not None:
                    return found
                if not self._wait(now, deadline):
                    return None
            return None

    def abandon(self, ticket: Ticket) -> None:
        """Give up waiting for a worker of one's own; nothing happens when the ticket has got one."""
        with self._changed:
            for worker_id in [found for found, holder in self._reserved.items() if holder is ticket]:
                del self._reserved[worker_id]
            self._changed.notify_all()

    def release(self, slot: Slot, *, broken: bool = False) -> None:
        """Give a slot back.

        Args:
            slot: What `acquire` or `exchange` returned.
            broken: Whether the worker ended the connection without an answer.
        """
        with self._changed:
            self.last_at = time.time()
            self._count(slot, -1)
            if broken:
                self._broken_until[slot.worker.id] = time.monotonic() + BROKEN_SECONDS
            self._changed.notify_all()

    def company(self, slot: Slot) -> int:
        """Return how many other tasks of ours run in a slot's worker, or broke off there just now (as one)."""
        with self._changed:
            running = max(0, self._in_flight.get(slot.worker.id, 0) - slot.size)
            return running + (self._broken_until.get(slot.worker.id, 0.0) > time.monotonic())

    def wake(self) -> None:
        """Let every waiter look again: at the end of the process, or when a task is cancelled."""
        with self._changed:
            self._changed.notify_all()

    def _count(self, slot: Slot, sign: int) -> None:
        left = self._in_flight.get(slot.worker.id, 0) + sign * slot.size
        if left > 0:
            self._in_flight[slot.worker.id] = left
        else:
            self._in_flight.pop(slot.worker.id, None)

    def _wait(self, now: float, deadline: float) -> bool:
        """Wait until something has changed or a rest is over; False when the time is over."""
        if now >= deadline:
            return False
        self._changed.wait(min([deadline, *(until for until in self._rests_until.values() if until > now)]) - now)
        return True

    def _pick(self, now: float, instead_of: Slot | None = None) -> WorkerRoute | None:
        """Return a worker with room; `instead_of` has a claim on its own one, although that is emptied for a ticket."""
        size, own = (instead_of.size, instead_of.worker.id) if instead_of else (1, None)
        free = [
            worker
            for worker in self._workers.values()
            if self._in_flight.get(worker.id, 0) + size <= self._concurrency
            and self._rests_until.get(worker.id, 0.0) <= now
            and (worker.id not in self._reserved or worker.id == own)
        ]
        return min(free, key=lambda worker: self._in_flight.get(worker.id, 0), default=None)

    def _pick_empty(self, now: float, ticket: Ticket) -> WorkerRoute | None:
        """Return a worker that runs nothing of ours, or have one emptied for the next time."""
        mine = [
            worker
            for worker in self._workers.values()
            if self._reserved.get(worker.id, ticket) is ticket and self._rests_until.get(worker.id, 0.0) <= now
        ]
        best = min(mine, key=lambda worker: self._in_flight.get(worker.id, 0), default=None)
        for worker_id in [found for found, holder in self._reserved.items() if holder is ticket]:
            del self._reserved[worker_id]
        if best is None:
            return None
        if not self._in_flight.get(best.id):
            return best
        self._reserved[best.id] = ticket
        return None
