"""Workers that nobody is sent to any more: each ends when it has finished what it was given.

A supervisor knows when that is, and drains by itself. For an image, gateways and forwarders say it: their reports name
how many calls they have at each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from brinery_platform.controller.worker import Worker

STOP_MARGIN_SECONDS: Final = 10.0
"""What a worker may take beyond its drain: for the last replies and the user's `unload`."""
QUIET_SECONDS: Final = 2.5
"""How long an image without calls is left alone: reports come once a second, and tell what was a second ago."""


@dataclass
class Leaving:
    """The workers of one endpoint that are to end.

    Args:
        stop: Ends something of the runtime in the background: its id, and a grace in seconds.
    """

    stop: Callable[[str, float], None]
    _images: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, worker: Worker, *, drain_seconds: float, now: float) -> None:
        """Have a worker end that the routing table no longer names.

        Args:
            worker: The worker.
            drain_seconds: How long it may finish its requests.
            now: By the monotonic clock.
        """
        if worker.supervised or not worker.ready:
            self.stop(worker.running.id, drain_seconds + STOP_MARGIN_SECONDS if worker.supervised else 0.0)
        else:
            self._images[worker.running.id] = (now + min(QUIET_SECONDS, drain_seconds), now + drain_seconds)

    def __contains__(self, worker_id: str) -> bool:
        """Whether an image is here; workers with supervisors never are."""
        return worker_id in self._images

    def drop(self, worker_id: str) -> bool:
        """Forget an image that is ended in another way; return whether it was here."""
        return self._images.pop(worker_id, None) is not None

    def look(self, in_flight: Mapping[str, int], now: float) -> None:
        """End the images that have finished, or had time enough.

        Args:
            in_flight: How many calls are at each; those that have none may be left out.
            now: By the monotonic clock.
        """
        for worker_id, (quiet_at, late_at) in list(self._images.items()):
            if now >= late_at or (now >= quiet_at and not in_flight.get(worker_id)):
                del self._images[worker_id]
                self.stop(worker_id, STOP_MARGIN_SECONDS)
