"""The requests of the native API, described: `Client.send` and `Client.asend` send them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

import httpx

from brinery.checks import check_task_id
from brinery.spec import MAX_WAIT_SECONDS

CONNECT_TIMEOUT_SECONDS: Final = 5.0
READ_TIMEOUT_SECONDS: Final = 60.0
"""For everything that the platform answers by itself, without waiting for a worker."""
UPLOAD_TIMEOUT_SECONDS: Final = 600.0
POLL_SLACK_SECONDS: Final = 5.0
"""How long an answer to a long-poll may be late before the connection counts as lost."""

Parameter = str | int | float | bool | Sequence[str] | None


@dataclass(frozen=True, kw_only=True)
class Request:
    """One HTTP request of the native API.

    Args:
        method: HTTP method.
        path: Below the base URL, quoted.
        params: Query parameters; None values are left out, several are sent as often.
        headers: On top of the client's own.
        content: Body.
        read_timeout_seconds: Longest silence of the server; None waits as long as the connection lives.
        brief: Whether the platform answers it by itself, at once. An event loop sends only a few of these side by
            side: more would be no faster, for httpx looks at every open connection whenever a request moves.
    """

    method: str
    path: str
    params: Mapping[str, Parameter] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    read_timeout_seconds: float | None = READ_TIMEOUT_SECONDS
    brief: bool = False

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of ``httpx``'s ``request`` and ``stream``."""
        return {
            "method": self.method,
            "url": self.path,
            "params": {name: value for name, value in self.params.items() if value is not None},
            "headers": dict(self.headers),
            "content": self.content,
            "timeout": httpx.Timeout(
                self.read_timeout_seconds,
                connect=CONNECT_TIMEOUT_SECONDS,
                write=UPLOAD_TIMEOUT_SECONDS,
                pool=None,
            ),
        }


def endpoint_path(name: str, *parts: str) -> str:
    """Return the path of an endpoint, of another owner's too (``owner/name``), and of what lies below it."""
    return "/".join(["/v1/endpoints", quote(name, safe="/"), *(quote(part, safe="") for part in parts)])


def task_path(task_id: str, *parts: str) -> str:
    """Return the path of a task and of what lies below it.

    Raises:
        InvalidRequestError: `task_id` is no task's id.
    """
    return "/".join(["/v1/tasks", check_task_id(task_id), *parts])


def task_request(task_id: str, *, wait_seconds: float = 0.0) -> Request:
    """Return the request for a task's record, answered when it is final or after `wait_seconds` (at most 60)."""
    wait = max(0.0, min(wait_seconds, MAX_WAIT_SECONDS))
    return Request(
        method="GET",
        path=task_path(task_id),
        params={"wait_seconds": round(wait, 3)},
        read_timeout_seconds=wait + POLL_SLACK_SECONDS,
    )


def result_request(task_id: str) -> Request:
    """Return the request for the bytes of a finished task's result."""
    return Request(method="GET", path=task_path(task_id, "result"))
