"""Why a worker ended the connection of a call, for the caller who waits for it."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import quote

from redis.asyncio import Redis
from redis.exceptions import RedisError

from brinery.errors import BrineryError, WorkerError
from brinery_platform.condemned import END_SECONDS, end_of
from brinery_platform.fates import (
    FATE_LOOK_SECONDS,
    FATE_SECONDS,
    Fate,
    error_of,
    fate_from_end,
    fate_from_supervisor,
)
from brinery_platform.gateway.lanes import Worker
from brinery_platform.gateway.proxy import LostError, NotSentError, Upstream


class Ends:
    """Asks whoever can know: a worker's supervisor, or the controller where it has none.

    Args:
        upstream: Reaches supervisors.
        redis: Where the controller writes why workers ended.
    """

    def __init__(self, upstream: Upstream, redis: Redis) -> None:
        self._upstream = upstream
        self._redis = redis

    async def explain(self, worker: Worker, request_id: str, lost: LostError) -> BrineryError:
        """Return the error that a caller gets whose call's connection ended.

        Args:
            worker: Which ended it.
            request_id: The call.
            lost: What was seen of it.
        """
        if worker.control_url:
            fate = await self._of_supervised(worker.control_url, request_id)
        else:
            fate = await self._of_image(worker.id, request_id)
        return error_of(fate, "this call", cause=lost.cause) or WorkerError(lost.message, cause=lost.cause)

    async def _of_supervised(self, control_url: str, request_id: str) -> Fate:
        path = f"/fate?request_id={quote(request_id, safe='')}"
        fate = Fate(fate="gone")
        with contextlib.suppress(NotSentError, LostError, BrineryError, TimeoutError):
            async with asyncio.timeout(FATE_SECONDS):
                while True:
                    fate = fate_from_supervisor(await self._upstream.get(control_url, path))
                    if fate.fate != "running":
                        return fate
                    await asyncio.sleep(FATE_LOOK_SECONDS)
        return fate

    async def _of_image(self, worker_id: str, request_id: str) -> Fate:
        end = None
        with contextlib.suppress(RedisError, TimeoutError):
            async with asyncio.timeout(2 * END_SECONDS):  # Redis may hang
                end = await end_of(self._redis, worker_id)
        return fate_from_end(end, request_id)
