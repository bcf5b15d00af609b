"""Whose fault it was that a connection ended without an answer, and what the attempt costs the task."""

from __future__ import annotations

from typing import Final

from brinery.errors import BrineryError, WorkerError
from brinery_platform.fates import Fate, error_of
from brinery_platform.forwarder.outcomes import Again

NEIGHBOUR_DELAY_SECONDS: Final = 0.2
"""About what a worker needs to start its process again; the task has done nothing to wait longer for."""


def judge(fate: Fate, error: BrineryError, *, alone: bool, company: int) -> Again:
    """Decide how a task goes on whose worker ended the connection.

    Args:
        fate: What the supervisor says.
        error: What the connection said.
        alone: Whether the task had the worker for itself; then the fault can be no other task's.
        company: How many other tasks of ours ran in the worker; counts where the supervisor does not know.
    """
    worker_id = error.context.get("worker_id")
    told = error_of(fate, "this task", worker_id=worker_id)
    if told is not None and fate.fate == "stopped":
        return Again(error=told)
    if told is not None and fate.fate == "neighbour":
        return Again(error=told, reason="neighbour", charge="spared", delay_seconds=NEIGHBOUR_DELAY_SECONDS)
    text, others = told.message if told is not None else error.message, company
    if fate.fate == "gone":
        text += " Its supervisor does not answer either."
    elif fate.fate == "crashed" and fate.others is not None:
        others = fate.others
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
