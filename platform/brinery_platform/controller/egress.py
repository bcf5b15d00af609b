"""The egress proxy: there while workers need it, started again when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from brinery.errors import BrineryError
from brinery_platform.runtimes.base import EGRESS_PROXY, Runtime

log = structlog.get_logger()

LINGER_SECONDS: Final = 60.0
GRACE_SECONDS: Final = 5.0
MAX_BACK_OFF_SECONDS: Final = 30.0


@dataclass
class ProxyKeeper:
    """Watches the proxy, which the first worker that needs it starts.

    Args:
        runtime: What runs it.
        stop: Ends something of the runtime in the background: its id, and a grace in seconds.
    """

    runtime: Runtime
    stop: Callable[[str, float], None]
    _runs: bool = False
    _needed_at: float = 0.0
    _started_at: float = 0.0
    _retry_at: float = 0.0
    _failures: int = 0

    def adopt(self) -> None:
        """Take over the one that an earlier controller started."""
        self._runs = True
        self._needed_at = time.monotonic()

    def keep(self, *, needed: bool) -> None:
        """Have it while it is needed; end it when it has not been needed for a while."""
        now = time.monotonic()
        if not needed:
            if self._runs and now - self._needed_at > LINGER_SECONDS:
                self._runs = False
                self.stop(EGRESS_PROXY, GRACE_SECONDS)
            return
        self._runs, self._needed_at = True, now
        if now < self._retry_at or self.runtime.poll(EGRESS_PROXY) is None:
            return
        self._failures = 0 if now - self._started_at > LINGER_SECONDS else self._failures + 1
        self._started_at = now
        self._retry_at = now + min(2.0**self._failures, MAX_BACK_OFF_SECONDS)
        log.warning("egress.restarts", why=self.runtime.why(EGRESS_PROXY))
        try:
            self.runtime.stop(EGRESS_PROXY, grace_seconds=0)
            self.runtime.start(self.runtime.egress_proxy())
        except BrineryError as error:
            log.warning("egress.start_failed", error=error.message)
