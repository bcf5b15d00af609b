"""What a controller of containers does when it is asked to end: it leaves all as it is, or ends it with the stack.

A controller that is restarted leaves workers and forwarders running. With the whole stack going down, gateways go
first; one that finds none living is the last to know of the containers, and ends them.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import structlog
from redis import Redis

from brinery.errors import BrineryError
from brinery_platform.routes import GATEWAY_CLIENT
from brinery_platform.runtimes.base import Kind, Runtime

GRACE_SECONDS: Final[dict[Kind, float]] = {"builder": 1.0, "forwarder": 30.0, "worker": 60.0, "egress": 5.0}
"""What ends, in this order, and how long each may take; callers' side first, the workers' way out last."""
PARTING_SECONDS: Final = 2.0
LOOK_SECONDS: Final = 0.1

log = structlog.get_logger()


def gateway_lives(redis: Redis) -> bool:
    """Return whether any gateway is connected to Redis; one that has ended or was killed is not, and costs nothing.

    Takes up to `PARTING_SECONDS`, in which the connections of one that is just ending are closed.
    """
    deadline = time.monotonic() + PARTING_SECONDS
    while any(client["name"] == GATEWAY_CLIENT for client in redis.client_list()):
        if time.monotonic() > deadline:
            return True
        time.sleep(LOOK_SECONDS)
    return False


def end_all(runtime: Runtime) -> None:
    """End all that works for the stack, and return when it is gone."""
    for kind, grace_seconds in GRACE_SECONDS.items():
        try:
            found = [running.id for running in runtime.list() if running.kind == kind]
        except BrineryError as error:
            log.warning("controller.cannot_end_all", kind=kind, error=error.message)
            return
        if found:
            log.info("controller.ends", kind=kind, count=len(found))
        with ThreadPoolExecutor(max_workers=16) as pool:
            for end in [pool.submit(runtime.stop, running_id, grace_seconds=grace_seconds) for running_id in found]:
                if (trouble := end.exception()) is not None:
                    log.warning("controller.cannot_end", kind=kind, error=str(trouble))
