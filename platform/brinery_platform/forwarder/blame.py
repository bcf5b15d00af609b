"""Whose fault it was that a connection ended without an answer, and what the attempt costs the task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from brinery.errors import BrineryError, UpstreamTimeoutError, WorkerError
from brinery_platform.forwarder.outcomes import Again

NEIGHBOUR_DELAY_SECONDS: Final = 0.2
"""About what a worker needs to start its process again; the task has done nothing to wait longer for."""


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


def judge(fate: Fate, error: BrineryError, *, alone: bool, company: int) -> Again:
    """Decide how a task goes on whose worker ended the connection.

    Args:
        fate: What the supervisor says.
        error: What the connection said.
        alone: Whether the task had the worker for itself; then the fault can be no other task's.
        company: How many other tasks of ours ran in the worker; counts where the supervisor does not know.
    """
    worker_id = error.context.get("worker_id")
    if fate.fate == "stopped":
        timeout = UpstreamTimeoutError(
            f"The function ran longer than its timeout and was stopped by force ({fate.reason}).", worker_id=worker_id
        )
        return Again(error=timeout)
    if fate.fate == "neighbour":
        spared = WorkerError(
            f"The worker's process was ended while it ran this task, but not for its sake: {fate.reason}.",
            worker_id=worker_id,
        )
        return Again(error=spared, reason="neighbour", charge="spared", delay_seconds=NEIGHBOUR_DELAY_SECONDS)
    if fate.fate == "crashed":
        text = f"The worker died while it ran this task: {fate.reason}."
        others = company if fate.others is None else fate.others
    elif fate.fate == "gone":
        text = f"{error.message} Its supervisor does not answer either."
        others = company
    else:
        text = error.message
        others = company
    if not others or alone:
        return Again(error=WorkerError(text, worker_id=worker_id))
    shared = WorkerError(
        f"{text} {others} other requests ran in it, so nobody knows whose fault it was; the next attempt gets a worker "
        "for itself.",
        worker_id=worker_id,
    )
    return Again(
        error=shared, reason="crashed together", charge="spared", delay_seconds=NEIGHBOUR_DELAY_SECONDS, alone=True
    )
