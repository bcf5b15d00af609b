"""Tasks over HTTP: accept, look, wait, fetch the result, cancel, list."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from brinery.errors import ConflictError, InvalidRequestError, NotFoundError
from brinery.spec import MAX_WAIT_SECONDS, Task, TaskStatus
from brinery_platform.gateway.auth import Caller
from brinery_platform.gateway.follow import EventStream, entries, frame, position
from brinery_platform.gateway.parts import AnyCaller, Gateway, Parts
from brinery_platform.gateway.predict import read_body
from brinery_platform.gateway.proxy import safe_content_type
from brinery_platform.gateway.replies import JsonResponse
from brinery_platform.gateway.submit import submit_task
from brinery_platform.gateway.task_view import task_json, why_failed
from brinery_platform.objects import CHUNK_BYTES, Objects
from brinery_platform.records import events_key

TASK_ID: Final = re.compile(r"tsk_[A-Za-z0-9_-]{1,60}")
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")

router = APIRouter(tags=["tasks"])


@router.post("/v1/endpoints/{name}/tasks", status_code=202)
async def submit(name: str, request: Request, caller: AnyCaller, gateway: Parts) -> Response:
    """Accept a call as a task; the body is what ``predict`` takes."""
    return await _submit(name, request, caller, gateway, None)


@router.put("/v1/endpoints/{name}/tasks/{task_id}", status_code=202)
async def submit_as(name: str, task_id: str, request: Request, caller: AnyCaller, gateway: Parts) -> Response:
    """Accept a call as a task of this id; repeating it returns the same task."""
    if not TASK_ID.fullmatch(task_id):
        raise InvalidRequestError(
            f"{task_id!r} is no task id: write tsk_ and up to 60 letters, digits, '_' and '-'.", field="task_id"
        )
    return await _submit(name, request, caller, gateway, task_id)


async def _submit(name: str, request: Request, caller: Caller, gateway: Gateway, task_id: str | None) -> Response:
    lane = await gateway.table.resolve(caller.owner, name)
    headers = dict(request.scope["headers"])
    body = await read_body(request.receive, headers)
    return await submit_task(gateway, lane, headers, body, task_id=task_id)


@router.get("/v1/tasks")
async def list_tasks(
    caller: AnyCaller,
    gateway: Parts,
    endpoint: str | None = None,
    status: TaskStatus | None = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """List the owner's tasks, newest first; ``cursor`` of the reply leads to the next page."""
    endpoint_id = None
    if endpoint is not None:
        endpoint_id = (await gateway.table.resolve(caller.owner, endpoint)).route.id
    page = await gateway.tasks.list(caller.owner, endpoint_id, status, cursor, limit)
    return JsonResponse({"tasks": [_shown(task, gateway) for task in page.tasks], "cursor": page.cursor})


@router.get("/v1/tasks/{task_id}")
async def get_task(
    task_id: str,
    caller: AnyCaller,
    gateway: Parts,
    wait_seconds: Annotated[float, Query(ge=0, le=MAX_WAIT_SECONDS)] = 0.0,
) -> Response:
    """Return a task, at once or when it is final, whichever of the two comes first within ``wait_seconds``."""
    deadline = time.monotonic() + wait_seconds
    with gateway.done.watch(task_id) as worth_a_look:
        while True:
            worth_a_look.clear()
            task = await _own_task(task_id, caller, gateway)
            left = deadline - time.monotonic()
            if task.status.final or left <= 0 or gateway.closing.is_set():
                return JsonResponse(_shown(task, gateway))
            try:
                async with asyncio.timeout(left):
                    await worth_a_look.wait()
            except TimeoutError:
                continue


@router.delete("/v1/tasks/{task_id}")
async def cancel_task(task_id: str, caller: AnyCaller, gateway: Parts) -> Response:
    """Cancel a task: at once while it is queued; one that runs is told to stop. A final one stays as it is."""
    await _own_task(task_id, caller, gateway)
    await gateway.tasks.cancel(task_id)
    return JsonResponse(_shown(await _own_task(task_id, caller, gateway), gateway))


@router.post("/v1/tasks/{task_id}/requeue", status_code=202)
async def requeue_task(task_id: str, caller: AnyCaller, gateway: Parts) -> Response:
    """Queue a failed task again, with all its attempts."""
    task = await _own_task(task_id, caller, gateway)
    if await gateway.tasks.requeue_dead(task_id) == "not_failed":
        raise ConflictError(f"The task is {task.status}; only a failed one can be queued again.", task_id=task_id)
    return JsonResponse(_shown(await _own_task(task_id, caller, gateway), gateway), status_code=202)


@router.get("/v1/tasks/{task_id}/events")
async def follow_task(
    task_id: str,
    caller: AnyCaller,
    gateway: Parts,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """Stream a task's changes of status as server-sent events, until it is final."""
    await _own_task(task_id, caller, gateway)
    return EventStream(_changes(task_id, position(last_event_id), gateway), gateway.follower())


async def _changes(task_id: str, after: str, gateway: Gateway) -> AsyncIterator[bytes]:
    stream = entries(gateway.services.aredis, events_key(task_id), after, follow=True, closing=gateway.closing)
    async for batch in stream:
        for entry_id, fields in batch:
            yield frame(
                {
                    "status": fields["status"],
                    "at": float(fields["at"]),
                    "attempt": int(fields["attempt"]),
                    "reason": fields["reason"],
                },
                event_id=entry_id,
            )
        if not batch:  # all that was kept is sent; the record says whether more will come
            task = await gateway.tasks.get(task_id)
            if task is None or task.status.final:
                return
            yield b""
        elif TaskStatus(batch[-1][1]["status"]).final:
            return


@router.get("/v1/tasks/{task_id}/result", response_class=Response)
async def get_result(
    task_id: str, caller: AnyCaller, gateway: Parts, wanted: Annotated[str | None, Header(alias="range")] = None
) -> Response:
    """Return the result's bytes as the worker gave them, or a part of them; a failed task answers its own error."""
    task = await _own_task(task_id, caller, gateway)
    if not task.status.final:
        raise ConflictError(
            f"The task is {task.status}; wait with GET /v1/tasks/{task_id}?wait_seconds=60.", task_id=task_id
        )
    if task.status != TaskStatus.SUCCEEDED:
        raise why_failed(task)
    objects, key = gateway.services.objects, task.result_object
    size = len(task.result or b"") if key is None else await run_in_threadpool(objects.size, key)
    start, end = _range(wanted, size)
    partial = wanted is not None and (start, end) != (0, size)
    headers = {
        "accept-ranges": "bytes",
        "content-length": str(end - start),
        "content-type": safe_content_type(task.result_type or ""),
    }
    if partial:
        headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
    status = 206 if partial else 200
    if key is None:
        return Response((task.result or b"")[start:end], status_code=status, headers=headers)
    return StreamingResponse(_pieces(objects, key, start, end - start), status_code=status, headers=headers)


def _pieces(objects: Objects, key: str, start: int, length: int) -> Iterator[bytes]:
    if not length:
        return
    with objects.open(key, start=start, length=length) as stream:
        while piece := stream.read(CHUNK_BYTES):
            yield piece


def _range(wanted: str | None, size: int) -> tuple[int, int]:
    """Return the first byte and the one after the last; all of them for a range that is not understood.

    Source: RFC 9110, section 14: a server may ignore ``Range``.
    """
    match = _RANGE.fullmatch(wanted or "")
    if match is None or match.groups() == ("", ""):
        return 0, size
    first, last = match.groups()
    if not first:
        return max(size - int(last), 0), size
    start, end = int(first), min(int(last) + 1 if last else size, size)
    return (start, end) if start < end else (0, size)


async def _own_task(task_id: str, caller: Caller, gateway: Gateway) -> Task:
    """Return the caller's task; another's is not told apart from one that does not exist."""
    task = await gateway.tasks.get(task_id)
    if task is None or task.owner != caller.owner:
        raise NotFoundError(f"There is no task {task_id!r}; it may have been forgotten.", task_id=task_id)
    return task


def _shown(task: Task, gateway: Gateway) -> dict[str, Any]:
    lane = gateway.table.by_id(task.endpoint_id)
    return task_json(task, lane.route.spec.name if lane is not None else None)
