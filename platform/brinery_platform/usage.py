"""What workers use at this moment: told by the controller while somebody watches, and only then.

Who wants to know sets the Redis key ``watched`` for a few seconds. The controller then looks every other second and
writes the hash ``usage`` of ``<endpoint id>/<worker id>`` → JSON, which expires when it stops.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import orjson
from redis.exceptions import RedisError

from brinery_platform.routes import WAKE

if TYPE_CHECKING:
    from redis import Redis

WATCHED: Final = "watched"
USAGE: Final = "usage"
WATCH_SECONDS: Final = 10
STALE_SECONDS: Final = 10
ANSWER_SECONDS: Final = 0.5
"""A view of endpoints waits no longer for these figures; it is right without them."""
SILENT_SECONDS: Final = 5.0
"""A Redis that did not answer is not asked again for so long."""

NOT_KNOWN: Final = {"cpus_used": None, "memory_mib_used": None, "pids": None}
"""What is shown of a worker that nobody has watched yet."""


@dataclass(frozen=True)
class WorkerUsage:
    """What one worker uses.

    Args:
        cpus_used: CPU cores, on average since the last look.
        memory_mib_used: Memory, without files that are only cached.
        pids: Processes and threads.
    """

    cpus_used: float
    memory_mib_used: float
    pids: int

    def dumps(self) -> bytes:
        """Return its JSON."""
        return orjson.dumps(asdict(self))


def field_of(endpoint_id: str, worker_id: str) -> str:
    """Return a worker's field in the hash."""
    return f"{endpoint_id}/{worker_id}"


class Watch:
    """Watches the workers of endpoints, for a gateway.

    Args:
        redis: A client that waits no longer than `ANSWER_SECONDS`.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._silent_until = 0.0

    def look(self, endpoint_id: str, worker_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the JSON of `WorkerUsage` for each of some workers whose figures are known, and ask for newer ones."""
        if not worker_ids or time.monotonic() < self._silent_until:
            return {}
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.set(WATCHED, 1, ex=WATCH_SECONDS, get=True)
                pipeline.hmget(USAGE, [field_of(endpoint_id, worker_id) for worker_id in worker_ids])
                already, found = cast("tuple[bytes | None, list[bytes | None]]", pipeline.execute())
            if already is None:
                self._redis.publish(WAKE, endpoint_id)
        except RedisError:
            self._silent_until = time.monotonic() + SILENT_SECONDS
            return {}
        return {
            worker_id: orjson.loads(raw) for worker_id, raw in zip(worker_ids, found, strict=True) if raw is not None
        }
