"""A request becomes a task: options and arguments checked, a large input stored, then the record written."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import orjson

from brinery.errors import ConflictError, InvalidRequestError, OverloadedError, UnsupportedPayloadError
from brinery.spec import (
    CONTENT_JSON,
    CONTENT_PICKLE,
    INLINE_BYTES,
    TASK_HEADERS,
    EndpointStatus,
    Task,
    TaskOptions,
    TaskStatus,
    from_json,
    new_id,
    to_json,
)
from brinery_platform.gateway.front import Headers
from brinery_platform.gateway.lanes import Lane
from brinery_platform.gateway.parts import Gateway
from brinery_platform.gateway.replies import Answer
from brinery_platform.gateway.routing import why_hopeless
from brinery_platform.gateway.schemas import check_arguments
from brinery_platform.gateway.task_view import task_json
from brinery_platform.objects import Objects
from brinery_platform.records import input_object

_FIELDS: Final = {name.lower().encode(): field for field, name in TASK_HEADERS.items()}
_NO_OPTIONS: Final = TaskOptions()


async def submit_task(
    gateway: Gateway, lane: Lane, headers: Headers, body: bytes, *, task_id: str | None = None
) -> Task:
    """Accept a request as a task.

    Args:
        gateway: This process's parts.
        lane: The caller's own endpoint.
        headers: Of the request, names in lower case.
        body: The arguments as they came.
        task_id: The caller's id for it, which makes repeating safe; None makes one.

    Returns:
        The task, or the one that had the id or the idempotency key already.

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
    if len(body) > INLINE_BYTES:
        key = await asyncio.to_thread(_store_input, gateway.services.objects, task.id, body)
        task = replace(task, input=None, input_object=key)
    try:
        submitted = await gateway.tasks.submit(task, max_queued=lane.route.spec.max_queued)
    except (OverloadedError, ConflictError):  # not when Redis is away: then the record may be there, and name it
        await _forget_input(gateway, task)
        raise
    if submitted.created:
        return submitted.task
    await _forget_input(gateway, task)
    if _content(submitted.task) != _content(task):
        raise ConflictError(
            "A task was submitted under this id or idempotency key with other arguments; choose another one.",
            task_id=submitted.task.id,
        )
    return submitted.task


def _store_input(objects: Objects, task_id: str, body: bytes) -> str:
    key = input_object(task_id, hashlib.sha256(body).hexdigest())
    objects.put(key, body)
    return key


def _content(task: Task) -> tuple[str, bytes | None, str]:
    """Return what tells two inputs apart; of a large one its digest, which its key ends with."""
    return task.input_type, task.input, (task.input_object or "").rpartition(".")[2]


async def answer_accepted(answer: Answer, lane: Lane, task: Task) -> None:
    """Send 202 and the task."""
    await answer.json(202, task_json(task, lane.route.spec.name), {"location": f"/v1/tasks/{task.id}"})


def _task(lane: Lane, headers: Headers, body: bytes, task_id: str | None) -> Task:
    options = _options(headers)
    kind = headers.get(b"content-type", b"application/json").decode("latin-1").partition(";")[0].strip().lower()
    if kind not in {CONTENT_JSON, CONTENT_PICKLE}:
        raise UnsupportedPayloadError(f"Arguments of type {kind!r} are not taken; send {CONTENT_JSON}.")
    if kind == CONTENT_JSON:
        check_arguments(lane.route.request_schema, body)
    spec, now = lane.route.spec, round(time.time(), 6)  # as the record keeps it
    task_id = task_id or new_id("tsk")
    webhook = options.webhook or spec.webhook
    return Task(
        id=task_id,
        endpoint_id=lane.route.id,
        owner=lane.route.owner,
        status=TaskStatus.QUEUED,
        attempt=0,
        max_attempts=options.max_attempts or spec.max_attempts,
        priority=options.priority,
        timeout_seconds=options.timeout_seconds or spec.timeout_seconds,
        result_ttl_seconds=options.result_ttl_seconds or spec.result_ttl_seconds,
        created_at=now,
        expires_at=round(now + (options.expires_in_seconds or spec.expires_in_seconds), 6),
        retry_for=spec.retry_for if options.retry_for is None else options.retry_for,
        priority_age_seconds=spec.priority_age_seconds,
        webhook=to_json(webhook) if webhook is not None else None,
        input_type=kind,
        input=body,
        idempotency_key=options.idempotency_key,
    )


async def _forget_input(gateway: Gateway, task: Task) -> None:
    """Delete an input that no record names."""
    if task.input_object is not None:
        await asyncio.to_thread(gateway.services.objects.delete, task.input_object)


def _options(headers: Headers) -> TaskOptions:
    """Return what the headers of a request choose.

    Raises:
        InvalidRequestError: Naming the option that is wrong.
    """
    given: dict[str, Any] = {}
    for name in _FIELDS.keys() & headers.keys():
        field = _FIELDS[name]
        given[field] = _READERS.get(field, str)(headers[name].decode("latin-1"))
    return from_json(TaskOptions, given, what="task options") if given else _NO_OPTIONS


def _entries(text: str) -> list[str]:
    return [entry for part in text.split(",") if (entry := part.strip())]


def _webhook(text: str) -> Any:
    """Return a webhook's description: a header holds its URL, or a JSON object."""
    if not text.startswith("{"):
        return {"url": text}
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise InvalidRequestError(
            f"task options: {TASK_HEADERS['webhook']} is no JSON; send a URL, or "
            '{"url": …, "username": …, "password": …}.',
            field="webhook",
        ) from None


_READERS: Final[dict[str, Callable[[str], Any]]] = {"retry_for": _entries, "webhook": _webhook}
"""How the header of a field is read that is not plain text."""
