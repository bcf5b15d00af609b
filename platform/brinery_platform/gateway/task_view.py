"""A task as the API shows it."""

from __future__ import annotations

from typing import Any

import orjson

from brinery.errors import BrineryError, TaskCancelledError, TaskExpiredError, error_from_json
from brinery.spec import CONTENT_JSON, Task, TaskStatus


def task_json(task: Task, endpoint: str | None) -> dict[str, Any]:
    """Return a task as JSON data for orjson.

    Args:
        task: The record.
        endpoint: Its endpoint's name, None where that is gone.

    Returns:
        Ids, status, counters and times (seconds since the epoch, UTC). ``error`` is the inner error object or None.
        ``result`` is there only if the task has succeeded with JSON that lies in the record (``result_inline``); its
        bytes are put in place as they came.
    """
    inline = task.status == TaskStatus.SUCCEEDED and task.result is not None and task.result_type == CONTENT_JSON
    shown: dict[str, Any] = {
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
        "error": _error(task),
        "result_type": task.result_type,
        "result_inline": inline,
    }
    if inline and task.result is not None:
        shown["result"] = orjson.Fragment(task.result)
    return shown


def why_failed(task: Task) -> BrineryError:
    """Return a final task's error as what it was; for one that has not succeeded."""
    if task.error is not None:
        return error_from_json({"error": _error(task)})
    if task.status == TaskStatus.CANCELLED:
        return TaskCancelledError(task_id=task.id)
    if task.status == TaskStatus.EXPIRED:
        return TaskExpiredError(task_id=task.id)
    return BrineryError("The task has failed and left no reason.", task_id=task.id)


def _error(task: Task) -> Any:
    """Return the inner error object: records hold it with or without the envelope of the wire."""
    error = task.error
    return error.get("error", error) if error is not None else None
