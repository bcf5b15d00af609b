"""What gateways and forwarders report of one endpoint, added up."""

from __future__ import annotations

from dataclasses import dataclass, field

from brinery_platform.condemned import Sentence


@dataclass
class Load:
    """What gateways and forwarders report of one endpoint, added up.

    Args:
        in_flight: Requests and tasks at workers.
        waiting: Requests held by gateways.
        queued: Tasks that no worker has yet.
        open: Tasks that are not final.
        last_at: When a request was last seen, seconds since the epoch.
        workers: Of images, how many requests and tasks are at each worker that has any.
        condemned: Workers that are to be replaced, and why.
    """

    in_flight: int = 0
    waiting: int = 0
    queued: int = 0
    open: int = 0
    last_at: float = 0.0
    workers: dict[str, int] = field(default_factory=dict)
    condemned: dict[str, Sentence] = field(default_factory=dict)
