"""One endpoint's forwarder: there while there is work or a worker, and not a minute longer."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

import structlog

from brinery.spec import LEASE_SECONDS, new_id
from brinery_platform.runtimes.base import PlatformSpec, Running, Runtime
from brinery_platform.tasks import Tasks

log = structlog.get_logger()

LINGER_SECONDS: Final = 60.0
GRACE_SECONDS: Final = 30.0
DELETED_GRACE_SECONDS: Final = 5.0
"""Of a deleted endpoint: its tasks are being cancelled, so there is little to wait for."""
RETRY_SECONDS: Final = 1.0
MOST_CHARACTERS: Final = 1_000
"""Of the last words of one that ended."""
SILENT_SECONDS: Final = 2 * LEASE_SECONDS
"""How long a forwarder may be unknown to Redis while its process is there: longer than a start, and than a short freeze
after which it goes on by itself."""


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
    _heard_at: float = 0.0
    _ending: bool = False

    def adopt(self, running: Running) -> None:
        """Take over what an earlier controller started; a second one is ended."""
        if self._running is None:
            self._running = running
            self._heard_at = time.monotonic()
        else:
            self.stop(running.id, GRACE_SECONDS)

    def hear(self, registered: Collection[str]) -> None:
        """Note which forwarders (``fwd_…``) have a lease, or have lost it so lately that nobody was told."""
        if self._running is not None and self._running.id in registered:
            self._heard_at = time.monotonic()

    def keep(self, *, needed: bool) -> None:
        """Have one if it is needed; end one that has not been needed for a while."""
        now = time.monotonic()
        if self._running is not None and (self._is_silent(now) or self.runtime.poll(self._running.id) is not None):
            why, last = self.runtime.why(self._running.id), list(self.runtime.logs(self._running.id, tail=1))
            log.warning(
                "forwarder.ended", forwarder_id=self._running.id, why=why, last=" ".join(last)[:MOST_CHARACTERS]
            )
            self.runtime.stop(self._running.id, grace_seconds=0.0)
            self.tasks.incarnation_died(self._running.id)
            self._running = None
            self._retry_at = now + RETRY_SECONDS
        if needed or not self._needed_at:
            self._needed_at = now
        if needed and self._running is None and now >= self._retry_at:
            identity = new_id("fwd")
            self._heard_at = now
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

    def _is_silent(self, now: float) -> bool:
        """Whether it hangs: its tasks were given to others, and it has not come back under a new name."""
        if self._running is None or now - self._heard_at < SILENT_SECONDS:
            return False
        log.warning("forwarder.silent", forwarder_id=self._running.id, endpoint_id=self.endpoint_id)
        return True

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
