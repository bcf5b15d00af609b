"""One thread that notices the end of processes at once, and keeps house in between."""

from __future__ import annotations

import os
import queue
import selectors
import threading
from collections.abc import Callable
from typing import Final

import structlog

HOUSEKEEPING_SECONDS: Final = 2.0

_log = structlog.get_logger(__name__)


class ExitWatcher:
    """Waits on process descriptors, children or not, and tells who ended.

    Args:
        ended: Called in the watcher's thread with the id given to `watch`.
        housekeeping: Called in the same thread about every `HOUSEKEEPING_SECONDS`.
    """

    def __init__(self, ended: Callable[[str], None], housekeeping: Callable[[], None]) -> None:
        self._ended = ended
        self._housekeeping = housekeeping
        self._arrivals: queue.SimpleQueue[tuple[int | None, str]] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="exit-watcher", daemon=True)
        self._thread.start()

    def watch(self, running_id: str, pidfd: int | None) -> None:
        """Tell when the process of `pidfd` ends; the descriptor belongs to the watcher from now on.

        None stands for a process that has ended already.
        """
        self._arrivals.put((pidfd, running_id))
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End the thread; what it watched goes on."""
        if not self._closing.is_set():
            self._closing.set()
            os.eventfd_write(self._wake, 1)
            self._thread.join()
            os.close(self._wake)

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            while not self._closing.is_set():
                for key, _ in selector.select(timeout=HOUSEKEEPING_SECONDS):
                    if key.fd == self._wake:
                        os.eventfd_read(self._wake)
                        continue
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    self._call(self._ended, key.data)
                self._take_arrivals(selector)
                self._call(self._housekeeping)
            for key in list(selector.get_map().values()):
                if key.fd != self._wake:
                    os.close(key.fd)
        while not self._arrivals.empty():
            pidfd, _ = self._arrivals.get()
            if pidfd is not None:
                os.close(pidfd)

    def _take_arrivals(self, selector: selectors.BaseSelector) -> None:
        while True:
            try:
                pidfd, running_id = self._arrivals.get_nowait()
            except queue.Empty:
                return
            if pidfd is None:
                self._call(self._ended, running_id)
            else:
                selector.register(pidfd, selectors.EVENT_READ, running_id)

    @staticmethod
    def _call(function: Callable[..., None], *arguments: str) -> None:
        try:
            function(*arguments)
        except Exception:  # noqa: BLE001 - the outer loop of this thread; without it no end is noticed any more
            _log.exception("exit watcher")
