"""How the gateway answers: the headers that every reply has, and errors in one shape everywhere."""

from __future__ import annotations

from typing import Any, Final

import orjson
from starlette.responses import Response
from starlette.types import Message, Send

from brinery.errors import AuthenticationError, BrineryError, OverloadedError
from brinery.spec import CONTENT_EVENTS, CONTENT_JSON, HEADER_REQUEST_ID

REQUEST_ID: Final = HEADER_REQUEST_ID.lower().encode()
NO_SNIFF: Final = (b"x-content-type-options", b"nosniff")
_JSON: Final = CONTENT_JSON.encode()


def error_body(error: BrineryError) -> bytes:
    """Return an error's JSON; context that is no JSON becomes text."""
    return orjson.dumps(error.to_json(), default=str)


def error_headers(error: BrineryError) -> dict[str, str]:
    """Return the headers that HTTP wants beside an error."""
    if isinstance(error, OverloadedError):
        return {"retry-after": str(error.context.get("retry_after_seconds", 1))}
    if isinstance(error, AuthenticationError):
        return {"www-authenticate": "Bearer"}
    return {}


def error_response(error: BrineryError, *, status: int | None = None) -> Response:
    """Return an error as a Starlette response.

    Args:
        error: What happened.
        status: HTTP status, where it is another than the error's own.
    """
    return Response(
        error_body(error), status_code=status or error.status, headers=error_headers(error), media_type=CONTENT_JSON
    )


def unexpected_error(request_id: str) -> BrineryError:
    """Return what a client may know of a defect."""
    return BrineryError(
        "Something went wrong inside the gateway; its log has it under this request id.", request_id=request_id
    )


def marked(send: Send, request_id: str) -> Send:
    """Return a `send` that adds the headers which every reply has."""

    async def send_marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (REQUEST_ID, request_id.encode()), NO_SNIFF]
        await send(message)

    return send_marked


class JsonResponse(Response):
    """JSON by orjson."""

    media_type = CONTENT_JSON

    def render(self, content: Any) -> bytes:
        """Return the body's bytes."""
        return orjson.dumps(content)


class Answer:
    """One reply of the hot path, written straight to the server.

    Args:
        send: ASGI's.
        request_id: Goes into its headers.
    """

    __slots__ = ("_send", "events", "request_id", "started", "status")

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.status = 500
        self.started = False
        self.events = False

    async def start(
        self, status: int, content_type: str, size: int | None, extra: dict[str, str] | None = None
    ) -> None:
        """Send the head.

        Args:
            status: HTTP status.
            content_type: A safe one.
            size: Bytes that will follow, None if that is not known.
            extra: More headers.
        """
        self.status = status
        self.started = True
        self.events = content_type == CONTENT_EVENTS
        headers = [(b"content-type", content_type.encode()), (REQUEST_ID, self.request_id.encode()), NO_SNIFF]
        if size is not None:
            headers.append((b"content-length", b"%d" % size))
        if self.events:
            headers.append((b"cache-control", b"no-cache"))
        if extra:
            headers.extend((name.encode(), value.encode()) for name, value in extra.items())
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def piece(self, body: bytes) -> None:
        """Send some bytes; more may follow."""
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self, body: bytes = b"") -> None:
        """Send the last bytes."""
        await self._send({"type": "http.response.body", "body": body})

    async def json(self, status: int, data: Any, extra: dict[str, str] | None = None) -> None:
        """Send a whole reply of JSON.

        Args:
            status: HTTP status.
            data: For orjson.
            extra: More headers.
        """
        body = orjson.dumps(data)
        await self.start(status, CONTENT_JSON, len(body), extra)
        await self.end(body)

    async def fail(self, error: BrineryError) -> None:
        """Send an error in whatever way is left.

        A stream of events gets it as its last event. Any other reply that has begun stays incomplete, which the server
        shows by closing the connection.
        """
        body = error_body(error)
        if not self.started:
            await self.start(error.status, CONTENT_JSON, len(body), error_headers(error))
            await self.end(body)
        elif self.events:
            await self.end(b"\n\nevent: error\ndata: " + body + b"\n\n")
