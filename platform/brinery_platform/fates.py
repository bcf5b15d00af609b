"""What became of a call whose worker ended the connection, and how that is said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson

from brinery.errors import BrineryError, UpstreamTimeoutError, WorkerError
from brinery_platform.condemned import End

FATE_SECONDS: Final = 1.0
"""How long a supervisor may take to notice that its process has ended: the connection ends a moment before."""
FATE_LOOK_SECONDS: Final = 0.05
MAX_REASON_TEXT: Final = 1000


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What a worker's supervisor, or the controller, says of a request without an answer; see ``brinery_worker.fates``.

    Args:
        fate: ``stopped``, ``neighbour``, ``crashed``, ``running`` or ``unknown``; ``gone`` when the supervisor itself
            did not answer.
        reason: Why the process ended, in a sentence; empty where nobody says.
        others: How many other requests ran in the process when it ended; None where nobody knows.
    """

    fate: str
    reason: str = ""
    others: int | None = 0


def fate_from_supervisor(said: bytes) -> Fate:
    """Read what a supervisor says; ``unknown`` where that is not understood."""
    try:
        found: Any = orjson.loads(said)
        fate, reason, others = found["fate"], found["reason"], found["others"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return Fate(fate="unknown")
    if not (isinstance(fate, str) and isinstance(reason, str) and isinstance(others, int)):
        return Fate(fate="unknown")
    return Fate(fate=fate, reason=reason[:MAX_REASON_TEXT], others=others)


def fate_from_end(end: End | None, request_id: str) -> Fate:
    """Return what the end of a worker without a supervisor means for one of its requests.

    Args:
        end: What the controller says; None if it says nothing.
        request_id: The request.
    """
    if end is None:
        return Fate(fate="unknown")
    if end.request_id and end.request_id != request_id:
        return Fate(fate="neighbour", reason=end.reason)
    return Fate(fate="crashed", reason=end.reason, others=None)


def error_of(fate: Fate, work: str, **context: Any) -> BrineryError | None:
    """Return the error that says what happened; None where nobody knows.

    Args:
        fate: What became of the request.
        work: What the worker was doing for its caller, such as ``this task``.
        context: Of the error.
    """
    if fate.fate == "stopped":
        return UpstreamTimeoutError(
            f"The function ran longer than its timeout and was stopped by force ({fate.reason}).", **context
        )
    if fate.fate == "neighbour":
        return WorkerError(
            f"The worker's process was ended while it ran {work}, but not for its sake: {fate.reason}.", **context
        )
    if fate.fate == "crashed":
        return WorkerError(f"The worker died while it ran {work}: {fate.reason}.", **context)
    return None
