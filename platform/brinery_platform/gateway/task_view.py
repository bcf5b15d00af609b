"""A task as the API shows it, and to whom."""

from __future__ import annotations

from typing import Any

import orjson

from brinery.errors import BrineryError, NotFoundError, TaskCancelledError, TaskExpiredError, error_from_json
from brinery.spec import CONTENT_JSON, Task, TaskStatus
from brinery_platform.gateway.auth import Caller
from brinery_platform.gateway.parts import Gateway


async def own_task(task_id: str, caller: Caller, gateway: Gateway) -> Task:
    """Return the caller's task.

    Raises:
        NotFoundError: There is none; another's is not told apart from one that does not exist.
        UnavailableError: Redis is away.
    """
    task = await gateway.tasks.get(task_id)
    if task is None or task.owner != caller.owner:
        raise NotFoundError(f"There is no task {task_id!r}; it may have been forgotten.", task_id=task_id)
    return task


def shown(task: Task, gateway: Gateway) -> dict[str, Any]:
    """Return a task as JSON data, with its endpoint's name where that is known here; see `task_json`."""
    lane = gateway.table.by_id(task.endpoint_id)
    return task_json(task, lane.route.spec.name if lane is not None else None)


def task_json(task: Task, endpoint: str | None) -> dict[str, Any]:
    """Return a task as JSON data for orjson.

    Args:
        task: The record.
        endpoint: Its endpoint's name, None where that is gone.

    Returns:
        Ids, status, counters and times (seconds since the epoch, UTC). ``phases`` are those of the last attempt, by
        the clock of Redis. ``error`` is the inner error object or None. ``webhook`` is None, or how far telling the
        task's end has come: never its password, and in a listing not where to, because a listing reads no secrets.
        ``result`` is there only if the task has succeeded with JSON that lies in the record (``result_inline``); its
        bytes are put in place as they came.
    """
    inline = task.status == TaskStatus.SUCCEEDED and task.result is not None and task.result_type == CONTENT_JSON
    view: dict[str, Any] = {
        "id": task.id,
        "endpoint": endpoint,
        "endpoint_id": task.endpoint_id,
        "status": task.status,
        "attempt": task.attempt,
        "max_attempts": task.max_attempts,
        "priority": task.priority,
        "created_at": task.created_at,
        "started_at": task.started_at,
        "finished_at": task.finished_at,
        "expires_at": task.expires_at,
        "not_before": task.not_before,
        "phases": {
            "queued": task.queued_at,
            "claimed": task.started_at,
            "sent": task.sent_at,
            "answered": task.answered_at,
            "stored": task.stored_at,
            "finished": task.finished_at,
        },
        "retry_for": task.retry_for,
        "webhook": _webhook(task),
        "error": task.error,
        "result_type": task.result_type,
        "result_inline": inline,
    }
    if inline and task.result is not None:
        view["result"] = orjson.Fragment(task.result)
    return view


def why_failed(task: Task) -> BrineryError:
    """Return a final task's error as what it was; for one that has not succeeded."""
    if task.error is not None:
        return error_from_json({"error": task.error})
    if task.status == TaskStatus.CANCELLED:
        return TaskCancelledError(task_id=task.id)
    if task.status == TaskStatus.EXPIRED:
        return TaskExpiredError(task_id=task.id)
    return BrineryError("The task has failed and left no reason.", task_id=task.id)


def _webhook(task: Task) -> dict[str, Any] | None:
    """Return what may be seen of a webhook: field by field, so that nothing else of the record ever gets out."""
    if task.webhook is None and task.webhook_state is None:
        return None
    target, state = task.webhook or {}, task.webhook_state or {}
    return {
        **{name: target[name] for name in ("url", "username") if target.get(name)},
        "status": state.get("status", "pending" if task.status.final else "waiting"),
        "attempts": state.get("attempts", 0),
        **{name: state.get(name) for name in ("last_status", "last_error", "next_at", "delivered_at")},
    }
