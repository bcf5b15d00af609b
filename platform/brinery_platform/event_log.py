"""What happened to an endpoint, line by line: a bounded Redis stream that pages, CLI and `deploy()` follow."""

from __future__ import annotations

import time
from typing import Final, Literal

from redis import Redis

MAX_EVENTS: Final = 10_000

EventKind = Literal["status", "build", "scale", "worker", "error"]


def stream(endpoint_id: str) -> str:
    """Return the key of an endpoint's stream."""
    return f"log:{endpoint_id}"


def append(redis: Redis, endpoint_id: str, *, version: int, kind: EventKind, text: str) -> None:
    """Add one line.

    Args:
        redis: Client of the platform's Redis.
        endpoint_id: ``end_…``.
        version: The version that it is about.
        kind: ``status`` lines also wake whoever waits for a deployment's end.
        text: One line, or a few for a traceback; never a payload or a secret.
    """
    fields = {"at": f"{time.time():.3f}", "version": version, "kind": kind, "text": text}
    redis.xadd(stream(endpoint_id), fields, maxlen=MAX_EVENTS, approximate=True)  # type: ignore[arg-type]  # str keys
