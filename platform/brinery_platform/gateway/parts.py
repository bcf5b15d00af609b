"""What the routes of the gateway share, and how they ask for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Final

from fastapi import Depends, Request

from brinery.errors import OverloadedError, PermissionDeniedError
from brinery_platform.async_tasks import AsyncTasks
from brinery_platform.gateway.auth import Caller, KeyTable
from brinery_platform.gateway.routing import RoutingTable
from brinery_platform.gateway.signals import Feed
from brinery_platform.gateway.worker_logs import WorkerLogs
from brinery_platform.services import Services

MAX_FOLLOWERS: Final = 256
"""Streams of endpoints' events and logs at once; each holds a connection to Redis, or a queue of lines."""


@dataclass(kw_only=True)
class Gateway:
    """The parts of one gateway process.

    Args:
        services: The platform's parts.
        keys: Who may call.
        table: Endpoints and their workers.
        tasks: The task records.
        done: Wakes whoever waits for a task's end.
        changes: Wakes whoever follows a task's events.
        logs: The workers' output.
        closing: Set when the process is asked to end: whoever only waits gives up.
    """

    services: Services
    keys: KeyTable
    table: RoutingTable
    tasks: AsyncTasks
    done: Feed
    changes: Feed
    logs: WorkerLogs
    closing: asyncio.Event
    followers: int = field(default=0, init=False)

    def follower(self) -> AbstractContextManager[None]:
        """Return what counts a stream while it is open.

        Raises:
            OverloadedError: There are `MAX_FOLLOWERS` already.
        """
        if self.followers >= MAX_FOLLOWERS:
            raise OverloadedError(
                f"{MAX_FOLLOWERS} streams are open already; close some, or try again.", retry_after_seconds=5
            )
        return self._counted()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.followers += 1
        try:
            yield
        finally:
            self.followers -= 1


async def gateway_of(request: Request) -> Gateway:
    """Return the parts of the process that serves `request`."""
    gateway: Gateway = request.app.state.gateway
    return gateway


Parts = Annotated[Gateway, Depends(gateway_of)]


async def authenticated(request: Request, gateway: Parts) -> Caller:
    """Return who calls.

    Raises:
        AuthenticationError: No live key came.
    """
    return gateway.keys.authenticate(request.headers.get("authorization", "").encode("latin-1"))


AnyCaller = Annotated[Caller, Depends(authenticated)]


async def authenticated_admin(caller: AnyCaller) -> Caller:
    """Return who calls, an administrator.

    Raises:
        AuthenticationError: No live key came.
        PermissionDeniedError: It is not an administrator's.
    """
    if not caller.admin:
        raise PermissionDeniedError("This needs an administrator's key.", key_id=caller.key_id)
    return caller


AdminCaller = Annotated[Caller, Depends(authenticated_admin)]
