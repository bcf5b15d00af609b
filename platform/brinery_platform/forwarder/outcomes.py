"""What may come of an attempt: the end of its task, or another attempt."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from brinery.errors import BrineryError, TaskCancelledError
from brinery.spec import TaskStatus
from brinery_platform.transitions import Charge, Claim

MAX_ERROR_TEXT: Final = 16_000
MAX_ERROR_FIELDS: Final = 20


class AttemptClock:
    """Tells the time of one attempt by the clock of Redis, so that those of other machines do not matter.

    Args:
        started_at: When the attempt was claimed, as its record says; make the clock as soon as that is known.
    """

    def __init__(self, started_at: float) -> None:
        self._offset = started_at - time.monotonic()

    def now(self) -> float:
        """Return seconds since the epoch, never before the claim and, but for drift, never after Redis' now."""
        return self._offset + time.monotonic()


@dataclass(kw_only=True)
class Settled:
    """What came of an attempt that ends its task; a result that the record does not hold is stored already.

    Args:
        claim: The attempt.
        status: The final status.
        values: Fields of the record: the result or its object, or the error, and times.
        reason: For the task's events.
        answer: What ``AsyncResult.get`` returns: the JSON result, or a reference to what is no JSON or is large.
        error: What it raises instead.
        dead: Whether the task becomes a dead letter.
        clock: Tells when it was stored; None when the attempt never got so far.
        report: What is kept of an attempt that did not succeed.
    """

    claim: Claim
    status: TaskStatus
    values: dict[str, Any]
    reason: str = "answered"
    answer: Any = None
    error: BrineryError | None = None
    dead: bool = False
    clock: AttemptClock | None = None
    report: dict[str, Any] | None = None


@dataclass(kw_only=True)
class Again:
    """What came of an attempt that does not end its task, unless it was the last one.

    Args:
        error: What went wrong.
        reason: For the task's events; the error's type when left out.
        charge: How the attempt counts.
        delay_seconds: Until the next one; None backs off.
        alone: Whether the next one is to have a worker for itself.
    """

    error: BrineryError
    reason: str = field(default="")
    charge: Charge = "full"
    delay_seconds: float | None = None
    alone: bool = False

    def __post_init__(self) -> None:
        self.reason = self.reason or self.error.wire_type()


def cancelled(claim: Claim) -> Settled:
    """Return the end of a task that was stopped because somebody asked for it."""
    error = TaskCancelledError(task_id=claim.task.id)
    return Settled(claim=claim, status=TaskStatus.CANCELLED, values={}, reason=error.wire_type(), error=error)


def failed(claim: Claim, error: BrineryError, *, reason: str = "", dead: bool = False) -> Settled:
    """Return the end of a task that failed; a dead letter unless the failure is the function's own answer."""
    return Settled(
        claim=claim,
        status=TaskStatus.FAILED,
        values={"error": error.to_json()["error"]},
        reason=reason or error.wire_type(),
        error=error,
        dead=dead,
    )


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
