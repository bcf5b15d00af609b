"""A streamed result: the items of a server-sent event stream, one by one as they come."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from brinery.errors import WorkerError, error_from_json
from brinery.spec import CONTENT_EVENTS
from brinery.sse import server_sent_events

if TYPE_CHECKING:
    from brinery.client import Client
    from brinery.routes import Request


def stream(client: Client, request: Request) -> Iterator[Any]:
    """Send `request`, asking for a stream, and yield each item's JSON value.

    Raises:
        WorkerError: The stream broke off before its end.
        BrineryError: What the endpoint or the platform reports, before the first item or after any.
    """
    request = dataclasses.replace(request, headers={**request.headers, "Accept": CONTENT_EVENTS})
    with client.open(request) as chunks:
        for event, data in server_sent_events(chunks):
            if event == "done":
                return
            if event == "error":
                raise error_from_json(json.loads(data))
            yield json.loads(data)
    raise WorkerError("The stream broke off before its end; the worker may have died. Call again.")
