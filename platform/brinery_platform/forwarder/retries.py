"""Which errors of the user's function are tried again: the entries of ``retry_for`` against a worker's answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from brinery.errors import BrineryError


def matching_entry(retry_for: Sequence[str], error: BrineryError, status: int) -> str | None:
    """Return the first entry of ``retry_for`` that an answer matches, or None.

    Args:
        retry_for: As `brinery.checks.check_retry_for` takes them. ``HTTP NNN`` matches the status of the answer, or of
            the reply that the function's exception is about. A name without dots matches the last part of the
            name of the exception's class or of one of its bases; one with dots matches a whole name.
        error: What the worker answered.
        status: HTTP status of the answer.
    """
    if not retry_for:
        return None
    statuses = {f"HTTP {status}", f"HTTP {error.context.get('http_status')}"}
    classes = _strings(error.context.get("exception_classes"))
    names = {name.rpartition(".")[2] for name in classes}
    return next((entry for entry in retry_for if entry in statuses or entry in names or entry in classes), None)


def _strings(value: Any) -> set[str]:
    # What a worker says comes from user code in the end, so it may be of any shape.
    return {each for each in value if isinstance(each, str)} if isinstance(value, list) else set()
