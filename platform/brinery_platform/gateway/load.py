"""What this gateway tells the controller: how much is in flight and waiting, and for whom somebody waits."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import Any, Final

import orjson
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from brinery_platform.gateway.lanes import Lane
from brinery_platform.gateway.routing import RoutingTable
from brinery_platform.routes import DEMAND, LOAD

REPORT_SECONDS: Final = 1.0
REMEMBERED_SECONDS: Final = 60.0
"""How long after its last call an idle endpoint is still named, so that a new controller learns of that call."""

logger = structlog.get_logger(__name__)


class LoadReporter:
    """Writes the hash ``load`` once a second while it changes, and at once when somebody waits for a first worker.

    Args:
        redis: Where to.
        table: What is reported.
    """

    def __init__(self, redis: Redis, table: RoutingTable) -> None:
        self._redis = redis
        self._table = table
        self._field = f"gateway:{socket.gethostname()}:{os.getpid()}:{time.time_ns():x}"
        self._reported: dict[str, Any] = {}
        self._demanded: set[str] = set()
        self._wanted = asyncio.Event()

    def demand(self, lane: Lane) -> None:
        """Signal that somebody waits for `lane` and no worker is ready; returns at once."""
        self._demanded.add(lane.route.id)
        self._wanted.set()

    async def run(self) -> None:
        """Report for ever; a signal that is lost is sent again a second later."""
        while True:
            try:
                async with asyncio.timeout(REPORT_SECONDS):
                    await self._wanted.wait()
            except TimeoutError:
                self._demanded.update(lane.route.id for lane in self._table if lane.waiting and not lane.workers)
            self._wanted.clear()
            try:
                await self._report()
            except (RedisError, OSError) as error:
                logger.debug("load_not_reported", error=str(error))

    async def _report(self) -> None:
        endpoints = self._endpoints()
        demanded, self._demanded = self._demanded, set()
        busy = any(entry["in_flight"] or entry["waiting"] for entry in endpoints.values())
        if not demanded and not busy and endpoints == self._reported:
            return
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.hset(LOAD, self._field, orjson.dumps({"at": time.time(), "endpoints": endpoints}))
            for endpoint_id in demanded:
                pipeline.publish(DEMAND, endpoint_id)
            await pipeline.execute()
        self._reported = endpoints

    def _endpoints(self) -> dict[str, Any]:
        since = time.time() - REMEMBERED_SECONDS
        return {
            lane.route.id: _entry(lane)
            for lane in self._table
            if lane.in_flight or lane.waiting or lane.last_at > since
        }

    async def forget(self) -> None:
        """Take this gateway out of the hash; its end makes the entry stale in any case."""
        try:
            async with asyncio.timeout(REPORT_SECONDS):
                await self._redis.hdel(LOAD, self._field)
        except (RedisError, OSError) as error:
            logger.debug("load_not_removed", error=str(error))


def _entry(lane: Lane) -> dict[str, Any]:
    entry: dict[str, Any] = {"in_flight": lane.in_flight, "waiting": lane.waiting, "last_at": lane.last_at}
    if at_images := lane.at_images():
        entry["workers"] = at_images
    return entry
