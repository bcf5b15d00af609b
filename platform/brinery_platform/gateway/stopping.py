"""How a call that nobody waits for any more is stopped: by its worker's supervisor, or by replacing the worker."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from brinery_platform.condemned import REST_SECONDS, Sentence, condemn
from brinery_platform.gateway.lanes import Lane, Worker
from brinery_platform.gateway.proxy import Upstream

CONDEMN_SECONDS: Final = 5.0

logger = structlog.get_logger(__name__)


class Stopping:
    """Stops calls whose connection to the worker is cut already.

    Args:
        upstream: Reaches supervisors.
        redis: Where the controller hears of workers that have none.
    """

    def __init__(self, upstream: Upstream, redis: Redis) -> None:
        self._upstream = upstream
        self._redis = redis

    async def stop(self, lane: Lane, worker: Worker, request_id: str) -> None:
        """Have one call stopped; a worker that is gone has stopped it.

        Args:
            lane: Of the endpoint.
            worker: Where it runs.
            request_id: Its name.
        """
        if worker.control_url:
            await self._upstream.cancel(worker.control_url, request_id)
            return
        if worker.on_cancel != "replace":
            return  # the image has seen its connection end
        lane.pause(worker, REST_SECONDS)
        reason = f"nobody waits any more for call {request_id}"
        sentence = Sentence(endpoint_id=lane.route.id, request_id=request_id, reason=reason)
        try:
            async with asyncio.timeout(CONDEMN_SECONDS):
                await condemn(self._redis, worker.id, sentence)
        except (RedisError, TimeoutError) as error:
            logger.info("worker_not_condemned", worker_id=worker.id, request_id=request_id, error=str(error))
