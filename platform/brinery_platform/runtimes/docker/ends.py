"""One thread that hears from the engine which containers have ended, and thereby knows which have not."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from brinery.errors import BrineryError
from brinery_platform.runtimes.docker import labels
from brinery_platform.runtimes.docker.engine import Engine, EngineStream

RECONNECT_SECONDS: Final = 1.0

_log = structlog.get_logger(__name__)


class EndWatcher:
    """Listens to the ends of a home's workers.

    While the engine's events are heard, what is known to run needs no question to the engine: see `is_alive`.

    Args:
        engine: The engine.
        wanted: Labels of the containers.
        ended: Called in the watcher's thread with the worker's id.
        running: Returns the ids that run now.
    """

    def __init__(
        self,
        engine: Engine,
        wanted: Mapping[str, str],
        ended: Callable[[str], None],
        running: Callable[[], set[str]],
    ) -> None:
        self._engine = engine
        self._wanted = dict(wanted)
        self._ended = ended
        self._running = running
        self._lock = threading.Lock()
        self._alive: set[str] = set()
        self._hears = False
        self._heard = False
        self._epoch = 0
        self._stream: EngineStream | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="container-ends", daemon=True)
        self._thread.start()

    def epoch(self) -> int:
        """Return a number that changes whenever a container ends."""
        return self._epoch

    def is_alive(self, running_id: str) -> bool:
        """Return whether it is certain that this one runs; False says nothing."""
        with self._lock:
            return self._hears and running_id in self._alive

    def note_alive(self, running_id: str, *, epoch: int) -> None:
        """Remember what the engine has just said to run.

        Args:
            running_id: The worker's id.
            epoch: What `epoch` returned before the engine was asked; if anything ended since, nothing is remembered.
        """
        with self._lock:
            if self._hears and epoch == self._epoch:
                self._alive.add(running_id)

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        with self._lock:
            if self._stream is not None:
                self._stream.end()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._listen()
            except BrineryError as error:
                if self._heard and not self._closing.is_set():
                    _log.warning("the engine's events are not heard", error=error.message)
                self._heard = False  # said once; an engine that was never there is said by whoever needs it
            except Exception:  # noqa: BLE001 - the outer loop of this thread; without it no end is noticed any more
                _log.exception("container ends")
            self._closing.wait(RECONNECT_SECONDS)

    def _listen(self) -> None:
        with contextlib.closing(self._engine.events(self._wanted, event="die")) as stream:
            with self._lock:
                self._stream = stream
                if self._closing.is_set():
                    return
            try:
                self._hear(stream)
            finally:
                with self._lock:
                    self._stream = None
                    self._hears = False

    def _hear(self, stream: EngineStream) -> None:
        # Whoever ended while nobody listened is told now; from here on there is no gap.
        running = self._running()
        with self._lock:
            missed = self._alive - running
            self._alive = running
            self._epoch += 1
            self._hears = self._heard = True
        for running_id in missed:
            self._ended(running_id)
        for event in stream:
            running_id = event["Actor"]["Attributes"].get(labels.ID, "")
            with self._lock:
                self._alive.discard(running_id)
                self._epoch += 1
            self._ended(running_id)
