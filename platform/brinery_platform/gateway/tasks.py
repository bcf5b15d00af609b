"""Tasks over HTTP: list, cancel, and what is done with dead letters; see `task_front` for those called most."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from brinery.errors import ConflictError, InvalidRequestError
from brinery.spec import EndpointStatus, TaskStatus
from brinery_platform.gateway.parts import AnyCaller, Parts, authenticated
from brinery_platform.gateway.replies import JsonResponse
from brinery_platform.gateway.task_view import own_task, shown

router = APIRouter(tags=["tasks"])


_FILTERS: Final = ("endpoint", "status", "dead", "cursor", "limit")


async def only_filters(request: Request) -> None:
    """Refuse a misspelt filter: without it the list would show what nobody asked for.

    Raises:
        InvalidRequestError: Naming it, and those that there are.
    """
    for name in request.query_params:
        if name not in _FILTERS:
            known = ", ".join(_FILTERS)
            raise InvalidRequestError(f"There is no filter {name!r} for tasks; there are {known}.", field=name)


@router.get("/v1/tasks", dependencies=[Depends(authenticated), Depends(only_filters)])
async def list_tasks(
    caller: AnyCaller,
    gateway: Parts,
    endpoint: str | None = None,
    status: Annotated[list[TaskStatus], Query()] = [],  # noqa: B006 - FastAPI copies defaults
    dead: bool = False,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """List the owner's tasks, newest first; ``cursor`` of the reply leads to the next page.

    ``status`` may be given several times, for tasks in any of these. With ``dead`` these are the dead letters: failed
    tasks that the platform, not the function, gave up.
    """
    endpoint_id = None
    if endpoint is not None:
        endpoint_id = (await gateway.table.resolve(caller.owner, endpoint)).route.id
    if not dead:
        page = await gateway.tasks.list(caller.owner, endpoint_id, status, cursor, limit)
    elif not {TaskStatus.FAILED}.issuperset(status):
        raise InvalidRequestError("status: every dead letter is failed; leave status out.", field="status")
    else:
        owned = [lane.route.id for lane in gateway.table if lane.route.owner == caller.owner]
        page = await gateway.tasks.list_dead(owned if endpoint_id is None else [endpoint_id], cursor, limit)
    return JsonResponse({"tasks": [shown(task, gateway) for task in page.tasks], "cursor": page.cursor})


@router.delete("/v1/tasks/{task_id}")
async def cancel_task(task_id: str, caller: AnyCaller, gateway: Parts) -> Response:
    """Cancel a task: at once while it is queued; one that runs is told to stop. A final one stays as it is."""
    await own_task(task_id, caller, gateway)
    await gateway.tasks.cancel(task_id)
    return JsonResponse(shown(await own_task(task_id, caller, gateway), gateway))


@router.post("/v1/tasks/{task_id}/requeue", status_code=202)
async def requeue_task(task_id: str, caller: AnyCaller, gateway: Parts) -> Response:
    """Queue a failed task again, with as many attempts as it was given at first."""
    task = await own_task(task_id, caller, gateway)
    lane = gateway.table.by_id(task.endpoint_id)
    if lane is None or lane.route.status == EndpointStatus.DELETING:
        raise ConflictError("The task's endpoint was deleted; nothing could run it.", task_id=task_id)
    if await gateway.tasks.requeue_dead(task_id) == "not_failed":
        raise ConflictError(f"The task is {task.status}; only a failed one can be queued again.", task_id=task_id)
    return JsonResponse(shown(await own_task(task_id, caller, gateway), gateway), status_code=202)


@router.post("/v1/tasks/{task_id}/drop", status_code=202)
async def drop_task(task_id: str, caller: AnyCaller, gateway: Parts) -> Response:
    """Forget a final task with its input and result, also as a dead letter; within some seconds."""
    task = await own_task(task_id, caller, gateway)
    if await gateway.tasks.drop(task_id) == "not_final":
        raise ConflictError(f"The task is {task.status}; cancel it first.", task_id=task_id)
    return JsonResponse({"id": task_id, "status": "dropped"}, status_code=202)


@router.get("/v1/tasks/{task_id}/attempts")
async def list_attempts(task_id: str, caller: AnyCaller, gateway: Parts) -> Response:
    """Return what is kept of a task's attempts that did not succeed, oldest first."""
    await own_task(task_id, caller, gateway)
    return JsonResponse({"attempts": await gateway.tasks.attempts(task_id)})
