"""A request becomes a task: options and arguments checked, a large input stored, then the record written."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from brinery.errors import ConflictError, OverloadedError, UnsupportedPayloadError
from brinery.spec import (
    CONTENT_JSON,
    CONTENT_PICKLE,
    HEADER_IDEMPOTENCY_KEY,
    HEADER_PRIORITY,
    HEADER_TIMEOUT_SECONDS,
    INLINE_BYTES,
    EndpointStatus,
    Task,
    TaskOptions,
    TaskStatus,
    from_json,
    new_id,
)
from brinery_platform.gateway.lanes import Lane
from brinery_platform.gateway.parts import Gateway
from brinery_platform.gateway.predict import Headers
from brinery_platform.gateway.replies import JsonResponse
from brinery_platform.gateway.routing import why_hopeless
from brinery_platform.gateway.schemas import check_arguments
from brinery_platform.gateway.task_view import task_json
from brinery_platform.records import input_object

HEADER_MAX_ATTEMPTS: Final = "X-Brinery-Max-Attempts"
HEADER_EXPIRES: Final = "X-Brinery-Expires-In-Seconds"
OPTIONS: Final = {
    HEADER_PRIORITY: "priority",
    HEADER_MAX_ATTEMPTS: "max_attempts",
    HEADER_TIMEOUT_SECONDS: "timeout_seconds",
    HEADER_EXPIRES: "expires_in_seconds",
    HEADER_IDEMPOTENCY_KEY: "idempotency_key",
}
"""Header → field of `TaskOptions`."""
MAX_EXPIRES_SECONDS: Final = 10 * 365 * 86_400.0


async def submit_task(
    gateway: Gateway, lane: Lane, headers: Headers, body: bytes, *, task_id: str | None = None
) -> JsonResponse:
    """Accept a request as a task.

    Args:
        gateway: This process's parts.
        lane: The caller's own endpoint.
        headers: Of the request, names in lower case.
        body: The arguments as they came.
        task_id: The caller's id for it, which makes repeating safe; None makes one.

    Returns:
        202 and the task, or the task that had the id or the idempotency key already.

    Raises:
        InvalidRequestError: An option or an argument is wrong.
        UnsupportedPayloadError: The arguments are neither JSON nor a pickle.
        ConflictError: The id is another's, the id or key stands for other arguments, or the endpoint is being deleted.
        OverloadedError: Too many tasks are open.
        UnavailableError: Redis or the object store is away; repeating with the same id is safe.
    """
    hopeless = why_hopeless(lane.route)
    if hopeless is not None and lane.route.status == EndpointStatus.DELETING:
        raise hopeless()
    task = _task(lane, headers, body, task_id)
    if task.input_object is not None:
        earlier = await gateway.tasks.get(task.id)
        if earlier is not None:  # its input stays what it is
            if (earlier.owner, earlier.endpoint_id) != (task.owner, task.endpoint_id):
                raise ConflictError(f"The task id {task.id} is taken; choose another one.", task_id=task.id)
            return _accepted(lane, earlier)
        await asyncio.to_thread(gateway.services.objects.put, task.input_object, body)
    try:
        submitted = await gateway.tasks.submit(task, max_queued=lane.route.spec.max_queued)
    except OverloadedError:
        await _forget_input(gateway, task)
        raise
    if submitted.task.id != task.id:
        await _forget_input(gateway, task)
    if not submitted.created and _inline(submitted.task) != _inline(task):
        raise ConflictError(
            "A task was submitted under this id or idempotency key with other arguments; choose another one.",
            task_id=submitted.task.id,
        )
    return _accepted(lane, submitted.task)


def _inline(task: Task) -> tuple[str, bytes | None]:
    """Return what tells two inputs apart; large ones, which lie in the object store, are taken for equal."""
    return task.input_type, task.input


def _task(lane: Lane, headers: Headers, body: bytes, task_id: str | None) -> Task:
    given = {field: headers.get(name.lower().encode()) for name, field in OPTIONS.items()}
    options = from_json(
        TaskOptions,
        {field: value.decode("latin-1") for field, value in given.items() if value is not None},
        what="task options",
    )
    kind = headers.get(b"content-type", b"application/json").decode("latin-1").partition(";")[0].strip().lower()
    if kind not in {CONTENT_JSON, CONTENT_PICKLE}:
        raise UnsupportedPayloadError(f"Arguments of type {kind!r} are not taken; send {CONTENT_JSON}.")
    if kind == CONTENT_JSON:
        check_arguments(lane.route.request_schema, body)
    spec, now = lane.route.spec, round(time.time(), 6)  # as the record keeps it
    task_id = task_id or new_id("tsk")
    inline = len(body) <= INLINE_BYTES
    return Task(
        id=task_id,
        endpoint_id=lane.route.id,
        owner=lane.route.owner,
        status=TaskStatus.QUEUED,
        attempt=0,
        max_attempts=options.max_attempts or spec.max_attempts,
        priority=options.priority,
        timeout_seconds=options.timeout_seconds or spec.timeout_seconds,
        result_ttl_seconds=spec.result_ttl_seconds,
        created_at=now,
        expires_at=round(now + min(options.expires_in_seconds or spec.expires_in_seconds, MAX_EXPIRES_SECONDS), 6),
        input_type=kind,
        input=body if inline else None,
        input_object=None if inline else input_object(task_id),
        idempotency_key=options.idempotency_key,
    )


async def _forget_input(gateway: Gateway, task: Task) -> None:
    """Delete an input that no record names."""
    if task.input_object is not None:
        await asyncio.to_thread(gateway.services.objects.delete, task.input_object)


def _accepted(lane: Lane, task: Task) -> JsonResponse:
    headers = {"location": f"/v1/tasks/{task.id}"}
    return JsonResponse(task_json(task, lane.route.spec.name), status_code=202, headers=headers)
