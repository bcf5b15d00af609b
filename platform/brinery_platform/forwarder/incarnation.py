"""One life of a forwarder in Redis: registered before it consumes, renewed while it lives, never used again."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time

from brinery_platform.tasks import Tasks


class Incarnation:
    """The id under which a forwarder claims tasks.

    When the forwarder was frozen or cut off for longer than its lease, its tasks were given to others; it then goes
    on under a new id, and what it finishes under the old one changes nothing.

    Args:
        tasks: Where it registers.
        running_id: ``fwd_…``, so that the controller can tell whose life this is.
    """

    def __init__(self, tasks: Tasks, running_id: str) -> None:
        self._tasks = tasks
        self._running_id = running_id
        self._started_at = time.time()
        self._lock = threading.Lock()
        self._id = ""

    @property
    def id(self) -> str:
        """The id in force."""
        return self._id

    def register(self, *, instead_of: str = "") -> None:
        """Take a new id, unless another thread has replaced `instead_of` already.

        Raises:
            UnavailableError: Redis did not answer; the id in force is unchanged.
        """
        with self._lock:
            if self._id != instead_of:
                return
            host = socket.gethostname()
            fresh = f"{self._running_id}:{host}:{os.getpid()}:{self._started_at:.3f}:{secrets.token_hex(6)}"
            self._tasks.register(fresh)
            self._id = fresh

    def renew(self) -> None:
        """Renew the lease, or begin a new life when it was lost.

        Raises:
            UnavailableError: Redis did not answer.
        """
        mine = self._id
        if not self._tasks.renew(mine):
            self.register(instead_of=mine)

    def retire(self) -> None:
        """End this life: what it still runs, if anything, may be taken over at once."""
        self._tasks.incarnation_died(self._running_id)
