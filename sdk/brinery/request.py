"""Which request the running user code serves: a context variable that the worker sets."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestContext:
    """The request that is being served.

    Args:
        request_id: Id of this one call; ``""`` outside a worker.
        task_id: ``tsk_…`` when the call is an attempt of a task, else None.
        attempt: Number of the attempt, from 1; above 1 means that an earlier one may have run in part.
    """

    request_id: str = ""
    task_id: str | None = None
    attempt: int = 1


_LOCAL = RequestContext()
_current: ContextVar[RequestContext] = ContextVar("brinery_request", default=_LOCAL)


def current_request() -> RequestContext:
    """Return the request being served, so that user code can be idempotent.

    Returns:
        The worker's request; outside a worker (``.local``, tests) one with an empty id and attempt 1.
    """
    return _current.get()


def set_current_request(context: RequestContext) -> None:
    """Make `context` what `current_request` returns in this thread; only the worker calls it."""
    _current.set(context)
