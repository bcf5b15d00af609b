"""Looks at what workers use while somebody watches; a thread of its own, which is there only then."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import structlog
from redis.exceptions import RedisError

from brinery.errors import BrineryError
from brinery_platform.runtimes.base import Runtime, Usage
from brinery_platform.usage import STALE_SECONDS, USAGE, WATCHED, WorkerUsage, field_of

if TYPE_CHECKING:
    from redis import Redis

log = structlog.get_logger(__name__)

FIRST_SECONDS: Final = 0.3
"""Between the first two looks: a share of a processor needs two."""
EVERY_SECONDS: Final = 2.0
MIB: Final = 2**20


class UsageKeeper:
    """Writes what workers use for whoever watches.

    Args:
        runtime: Knows what they use.
        redis: Where it is written, and where watchers are.
    """

    def __init__(self, runtime: Runtime, redis: Redis) -> None:
        self._runtime = runtime
        self._redis = redis
        self._workers: dict[str, str] = {}
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def looks(self) -> bool:
        """Whether its thread is there."""
        return self._thread is not None and self._thread.is_alive()

    def look(self, workers: Mapping[str, str]) -> None:
        """Have the thread run if somebody watches; costs one question to Redis, without workers none.

        Args:
            workers: All workers: id → endpoint's id.
        """
        self._workers = dict(workers)
        if not workers or self.looks or not self._redis.exists(WATCHED):
            return
        self._thread = threading.Thread(target=self._run, name="usage", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            before, then = self._runtime.usage(list(self._workers)), time.monotonic()
            wait_seconds = FIRST_SECONDS
            while not self._closing.wait(wait_seconds) and self._redis.exists(WATCHED):
                workers = self._workers
                used, now = self._runtime.usage(list(workers)), time.monotonic()
                self._write(workers, before, used, now - then)
                before, then = used, now
                wait_seconds = EVERY_SECONDS
        except (BrineryError, RedisError) as error:  # the engine or Redis is away; the next tick tries again
            log.info("usage.unknown", error=str(error))

    def _write(
        self, workers: Mapping[str, str], before: Mapping[str, Usage], used: Mapping[str, Usage], seconds: float
    ) -> None:
        told: dict[Any, bytes] = {
            field_of(workers[worker_id], worker_id): WorkerUsage(
                cpus_used=round(max(0.0, usage.cpu_seconds - before[worker_id].cpu_seconds) / seconds, 2),
                memory_mib_used=round(usage.memory_bytes / MIB, 1),
                pids=usage.pids,
            ).dumps()
            for worker_id, usage in used.items()
            if worker_id in before and worker_id in workers
        }
        with self._redis.pipeline() as pipeline:
            pipeline.delete(USAGE)
            if told:
                pipeline.hset(USAGE, mapping=told)
                pipeline.expire(USAGE, STALE_SECONDS)
            pipeline.execute()
