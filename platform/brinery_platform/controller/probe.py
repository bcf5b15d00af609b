"""Asks supervisors, or images themselves, how workers are: often while one starts, now and then when it is ready."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import orjson

from brinery_platform.controller.health import Health
from brinery_platform.controller.ready_route import ask_image
from brinery_platform.controller.small_get import small_get
from brinery_platform.runtimes.base import Running

STARTING_INTERVAL_SECONDS: Final = 0.02
READY_INTERVAL_SECONDS: Final = 2.0
PROBE_TIMEOUT_SECONDS: Final = 2.0
ASKING_AT_ONCE: Final = 8
"""So that supervisors that hang do not keep the others from being asked."""


class Prober:
    """Keeps the health of every watched worker, and calls `on_change` when one becomes another.

    Args:
        on_change: Called from the prober's thread with the worker's id.
    """

    def __init__(self, on_change: Callable[[str], None]) -> None:
        self._on_change = on_change
        self._watched: dict[str, Running] = {}
        self._health: dict[str, Health] = {}
        self._due: dict[str, float] = {}
        self._served: set[str] = set()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopped = False
        self._askers = ThreadPoolExecutor(max_workers=ASKING_AT_ONCE, thread_name_prefix="ask")
        self._thread = threading.Thread(target=self._run, name="prober", daemon=True)
        self._thread.start()

    def watch(self, worker: Running, *, ask_first: bool = False) -> None:
        """Begin to ask `worker`'s supervisor.

        Args:
            worker: What the runtime started.
            ask_first: Have its health when this returns: an adopted worker may have been ready for days.
        """
        with self._lock:
            self._watched[worker.id] = worker
            self._due[worker.id] = 0.0
        if ask_first:
            self._ask(worker)
        self._wake.set()

    def forget(self, worker_id: str) -> None:
        """Ask no more; one that is not watched is no error."""
        with self._lock:
            for table in (self._watched, self._health, self._due):
                table.pop(worker_id, None)
            self._served.discard(worker_id)

    def health(self, worker_id: str) -> Health:
        """Return what was last heard."""
        return self._health.get(worker_id, Health("unreachable"))

    def look(self, worker_id: str) -> Health:
        """Ask a watched worker's supervisor now, and return its answer."""
        with self._lock:
            worker = self._watched.get(worker_id)
        if worker is not None:
            self._ask(worker)
        return self.health(worker_id)

    def close(self) -> None:
        """End the threads."""
        self._stopped = True
        self._wake.set()
        self._thread.join()
        self._askers.shutdown()

    def _run(self) -> None:
        while not self._stopped:
            now = time.monotonic()
            with self._lock:
                due = [worker for worker in self._watched.values() if self._due[worker.id] <= now]
                for worker in due:
                    self._due[worker.id] = math.inf  # until it is known when to ask again
            for worker in due:
                self._askers.submit(self._ask, worker)
            with self._lock:
                next_at = min(self._due.values(), default=now + READY_INTERVAL_SECONDS)
            self._wake.wait(min(max(0.001, next_at - time.monotonic()), READY_INTERVAL_SECONDS))
            self._wake.clear()

    def _ask(self, worker: Running) -> None:
        found = self._request(worker)
        with self._lock:
            if worker.id not in self._watched:
                return
            before = self._health.get(worker.id)
            self._health[worker.id] = found
            if found.serves:
                self._served.add(worker.id)
            settled = worker.id in self._served or found.state == "failed"
            self._due[worker.id] = time.monotonic() + (READY_INTERVAL_SECONDS if settled else STARTING_INTERVAL_SECONDS)
        self._wake.set()
        if before is None or (before.serves, before.state == "failed") != (found.serves, found.state == "failed"):
            self._on_change(worker.id)

    def _request(self, worker: Running) -> Health:
        if worker.ready_route:
            return ask_image(worker)
        try:
            _, body = small_get(f"{worker.control_url}/status", seconds=PROBE_TIMEOUT_SECONDS)
            status = orjson.loads(body)
            health = Health(str(status["state"]), status.get("error"))
            if not self.health(worker.id).serves and health.serves:
                # Ready means that the serving port has answered too, not only that the supervisor says so.
                ready, _ = small_get(f"{worker.url}/readyz", seconds=PROBE_TIMEOUT_SECONDS)
                return health if ready == 200 else Health("loading")
        except (OSError, ValueError, KeyError, TypeError):
            return Health("unreachable")
        return health
