"""One endpoint's forwarder: there while there is work or a worker, and not a minute longer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from brinery.spec import new_id
from brinery_platform.runtimes.base import PlatformSpec, Running, Runtime
from brinery_platform.tasks import Tasks

LINGER_SECONDS: Final = 60.0
GRACE_SECONDS: Final = 30.0
DELETED_GRACE_SECONDS: Final = 5.0
"""Of a deleted endpoint: its tasks are being cancelled, so there is little to wait for."""
RETRY_SECONDS: Final = 1.0


@dataclass
class ForwarderKeeper:
    """Starts, watches and ends the forwarder of an endpoint; one at zero costs no process at all.

    Args:
        runtime: What runs it.
        tasks: The task records, which are told at once when it died.
        stop: Ends something of the runtime in the background: its id, and a grace in seconds.
        endpoint_id: ``end_…``.
    """

    runtime: Runtime
    tasks: Tasks
    stop: Callable[[str, float], None]
    endpoint_id: str
    _running: Running | None = None
    _needed_at: float = 0.0
    _retry_at: float = 0.0
    _ending: bool = False

    def adopt(self, running: Running) -> None:
        """Take over what an earlier controller started; a second one is ended."""
        if self._running is None:
            self._running = running
        else:
            self.stop(running.id, GRACE_SECONDS)

    def keep(self, *, needed: bool) -> None:
        """Have one if it is needed; end one that has not been needed for a while."""
        now = time.monotonic()
        if self._running is not None and self.runtime.poll(self._running.id) is not None:
            self.runtime.stop(self._running.id, grace_seconds=0.0)
            self.tasks.incarnation_died(self._running.id)
            self._running = None
            self._retry_at = now + RETRY_SECONDS
        if needed or not self._needed_at:
            self._needed_at = now
        if needed and self._running is None and now >= self._retry_at:
            identity = new_id("fwd")
            self._running = self.runtime.start(
                PlatformSpec(
                    id=identity,
                    kind="forwarder",
                    module="brinery_platform.forwarder",
                    endpoint_id=self.endpoint_id,
                    arguments=("--endpoint", self.endpoint_id, "--id", identity),
                )
            )
        if self._running is not None and now - self._needed_at > LINGER_SECONDS:
            self.stop(self._running.id, GRACE_SECONDS)
            self._running = None

    def dissolve(self) -> bool:
        """End it for good; return whether it is gone."""
        if self._running is None:
            return True
        if not self._ending:
            self._ending = True
            self.stop(self._running.id, DELETED_GRACE_SECONDS)
        if self.runtime.poll(self._running.id) is None:
            return False
        self.tasks.incarnation_died(self._running.id)  # so that nothing of it runs and can be cancelled
        self._running = None
        return True
