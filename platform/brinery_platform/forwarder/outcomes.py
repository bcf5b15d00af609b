"""What may come of an attempt that ends its task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson

from brinery.errors import BrineryError, TaskCancelledError
from brinery.spec import TaskStatus
from brinery_platform.transitions import Claim

MAX_ERROR_TEXT: Final = 16_000
MAX_ERROR_FIELDS: Final = 20


@dataclass(kw_only=True)
class Settled:
    """What came of an attempt that ends its task; stored by Celery's backend first, then finished on the record.

    Args:
        claim: The attempt.
        status: The final status.
        values: Fields of the record: the result or its object, or the error.
        answer: What ``AsyncResult.get`` returns: the JSON result, or a reference to what is no JSON or is large.
        error: What it raises instead.
        dead: Whether the task becomes a dead letter.
    """

    claim: Claim
    status: TaskStatus
    values: dict[str, Any]
    answer: Any = None
    error: BrineryError | None = None
    dead: bool = False


def cancelled(claim: Claim) -> Settled:
    """Return the end of a task that was stopped because somebody asked for it."""
    error = TaskCancelledError(task_id=claim.task.id)
    return Settled(claim=claim, status=TaskStatus.CANCELLED, values={}, error=error)


def failed(claim: Claim, error: BrineryError, *, dead: bool = False) -> Settled:
    """Return the end of a task that failed; a dead letter unless the failure is the function's own answer."""
    values = {"error": error.to_json()}
    return Settled(claim=claim, status=TaskStatus.FAILED, values=values, error=error, dead=dead)


def bounded(error: BrineryError) -> BrineryError:
    """Cut what a worker says about an error to what a record should hold; of a traceback the end tells most."""
    error.message = error.message[:MAX_ERROR_TEXT]
    cut = {
        str(name)[:100]: value[-MAX_ERROR_TEXT:] if isinstance(value, str) else value
        for name, value in list(error.context.items())[:MAX_ERROR_FIELDS]
    }
    error.context = {
        name: value
        for name, value in cut.items()
        if isinstance(value, str) or len(orjson.dumps(value)) <= MAX_ERROR_TEXT
    }
    return error
