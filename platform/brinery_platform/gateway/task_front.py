"""The task routes in front of FastAPI: accept a task, and return one, at once or when it is final."""

from __future__ import annotations

import asyncio
import math
from typing import Final
from urllib.parse import parse_qs

from brinery.checks import check_task_id
from brinery.errors import InvalidRequestError
from brinery.spec import MAX_WAIT_SECONDS, Task
from brinery_platform.gateway.auth import Caller
from brinery_platform.gateway.front import FrontRequest, FrontRoute, HungUpError
from brinery_platform.gateway.metrics import Metrics
from brinery_platform.gateway.parts import Gateway
from brinery_platform.gateway.submit import answer_accepted, submit_task
from brinery_platform.gateway.task_view import own_task, shown
from brinery_platform.gateway.watch import HangUp

SUBMIT_PATH: Final = "/v1/endpoints/{name}/tasks"
SUBMIT_AS_PATH: Final = "/v1/endpoints/{name}/tasks/{task_id}"
TASK_PATH: Final = "/v1/tasks/{task_id}"


class SubmitRoute(FrontRoute):
    """Accepts a call as a task, by POST, or by PUT under the caller's own id.

    Args:
        gateway: This process's parts.
        metrics: Counts every request.
    """

    def __init__(self, gateway: Gateway, metrics: Metrics) -> None:
        super().__init__(gateway.keys)
        self._gateway = gateway
        self._metrics = metrics

    async def serve(self, caller: Caller, request: FrontRequest) -> None:
        """Write the task's record and answer with it."""
        name, _, *ids = request.path.split("/")[3:]
        task_id = ids[0] if ids else None
        if task_id is not None:
            check_task_id(task_id)
        table = self._gateway.table
        lane = request.lane = table.find(caller.owner, name) or await table.resolve(caller.owner, name)
        body = await request.body()
        task = await submit_task(self._gateway, lane, request.headers, body, task_id=task_id)
        await answer_accepted(request.answer, lane, task)

    def count(self, request: FrontRequest) -> None:
        """Count a request by its endpoint; one for an endpoint that does not exist is nobody's."""
        if request.lane is not None:
            route = request.lane.route
            self._metrics.submitted(route.owner, route.spec.name, request.answer.status)


class TaskRoute(FrontRoute):
    """Returns a task, at once or when it is final, whichever of the two comes first within ``wait_seconds``.

    Whoever waits costs a few kilobytes, and nothing is asked for him until the task's end is said.

    Args:
        gateway: This process's parts.
    """

    def __init__(self, gateway: Gateway) -> None:
        super().__init__(gateway.keys)
        self._gateway = gateway

    async def serve(self, caller: Caller, request: FrontRequest) -> None:
        """Answer with the task."""
        task_id = request.path.rpartition("/")[2]
        seconds = _wait_seconds(request.query)
        if seconds:
            task = await self._wait(task_id, caller, request, seconds)
        else:
            task = await own_task(task_id, caller, self._gateway)
        await request.answer.json(200, shown(task, self._gateway))

    def count(self, request: FrontRequest) -> None:
        """Count nothing: who looks at a task changes nothing."""

    async def _wait(self, task_id: str, caller: Caller, request: FrontRequest, seconds: float) -> Task:
        """Return the task when it is final or the time is over; while Redis is away, as it was last seen.

        Raises:
            HungUpError: The client did not wait so long.
        """
        gateway, loop = self._gateway, asyncio.get_running_loop()
        deadline = loop.time() + seconds
        with gateway.done.watch((task_id,)) as woken:
            woken.take()
            task = await own_task(task_id, caller, gateway)
            if task.status.final or gateway.closing.is_set():
                return task
            hang_up = HangUp(request.receive, woken.wake_all)
            try:
                while True:
                    await woken.wait(max(deadline - loop.time(), 0.0))
                    if hang_up.gone:
                        raise HungUpError
                    with woken.looking():
                        task = await own_task(task_id, caller, gateway)
                    if task.status.final or gateway.closing.is_set() or loop.time() >= deadline:
                        return task
            finally:
                hang_up.close()


def _wait_seconds(query: bytes) -> float:
    """Return how long a request may wait.

    Raises:
        InvalidRequestError: ``wait_seconds`` is no number from 0 to `MAX_WAIT_SECONDS`.
    """
    if not query:
        return 0.0
    given = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("wait_seconds")
    if given is None:
        return 0.0
    try:
        seconds = float(given[-1])
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= MAX_WAIT_SECONDS:
        raise InvalidRequestError(
            f"wait_seconds: write a number of seconds from 0 to {MAX_WAIT_SECONDS:.0f}.", field="wait_seconds"
        )
    return seconds
