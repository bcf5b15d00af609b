"""Ends what runs, in the background: an end takes as long as a drain, and the controller's loop waits for none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import structlog

from brinery.errors import UnavailableError
from brinery_platform.runtimes.base import Runtime

AT_ONCE: Final = 16
AGAIN_SECONDS: Final = 1.0
"""Between two attempts while the engine is away: whoever ordered the end has forgotten what is to end."""

log = structlog.get_logger(__name__)


class Stops:
    """The ends that a controller has ordered.

    Args:
        runtime: What ends them.
        on_end: Called from a thread after each.
        again_seconds: See `AGAIN_SECONDS`.
    """

    def __init__(self, runtime: Runtime, on_end: Callable[[], None], *, again_seconds: float = AGAIN_SECONDS) -> None:
        self._runtime = runtime
        self._on_end = on_end
        self._again_seconds = again_seconds
        self._closing = threading.Event()
        self._threads = ThreadPoolExecutor(max_workers=AT_ONCE, thread_name_prefix="stop")

    def order(self, running_id: str, grace_seconds: float) -> None:
        """Have something ended.

        Args:
            running_id: Its id.
            grace_seconds: See `Runtime.stop`.
        """
        self._threads.submit(self._stop, running_id, grace_seconds)

    def close(self) -> None:
        """Return when all ordered ends have been tried; what an engine that is away has left runs on."""
        self._closing.set()
        self._threads.shutdown(wait=True)

    def _stop(self, running_id: str, grace_seconds: float) -> None:
        told = False
        while True:
            try:
                self._runtime.stop(running_id, grace_seconds=grace_seconds)
            except UnavailableError as error:
                if not told:
                    log.warning("controller.stop_waits", running_id=running_id, error=error.message)
                told = True
                if self._closing.wait(self._again_seconds):
                    return
            except Exception:  # nobody asks for the outcome of a thread's work
                log.exception("controller.stop_failed", running_id=running_id)
                return
            else:
                self._on_end()
                return
