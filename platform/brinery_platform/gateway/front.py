"""Routes in front of FastAPI, for what is called most: who calls is found first, every error becomes an answer."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from typing import Final

import structlog
from starlette.types import Receive, Scope, Send

from brinery.errors import BrineryError, InvalidRequestError, PayloadTooLargeError
from brinery.spec import MAX_BODY_BYTES
from brinery_platform.gateway.auth import Caller, KeyTable
from brinery_platform.gateway.lanes import Lane
from brinery_platform.gateway.metrics import HUNG_UP_STATUS
from brinery_platform.gateway.replies import Answer, unexpected_error

BODY_SECONDS: Final = 300.0
"""How long a client may take to send its body."""

Headers = dict[bytes, bytes]

logger = structlog.get_logger(__name__)


class HungUpError(Exception):
    """The client is gone; nobody reads an answer."""


class FrontRequest:
    """One request in front of FastAPI.

    Args:
        scope: ASGI's.
        receive: ASGI's.
        send: ASGI's.
    """

    __slots__ = ("answer", "begun", "headers", "lane", "path", "query", "receive")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.begun = time.perf_counter()
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.headers: Headers = dict(scope["headers"])
        self.receive = receive
        self.answer = Answer(send, scope["brinery.request_id"])
        self.lane: Lane | None = None

    @property
    def seconds(self) -> float:
        """Time since its arrival."""
        return time.perf_counter() - self.begun

    async def body(self) -> bytes:
        """Return the whole body; see `read_body`."""
        return await read_body(self.receive, self.headers)


class FrontRoute(ABC):
    """A route in front of FastAPI: an ASGI application for one kind of request.

    Args:
        keys: Who may call.
    """

    def __init__(self, keys: KeyTable) -> None:
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        request = FrontRequest(scope, receive, send)
        answer = request.answer
        try:
            caller = self._keys.authenticate(request.headers.get(b"authorization", b""))
            await self.serve(caller, request)
        except BrineryError as error:
            await answer.fail(error)
        except HungUpError:
            answer.status = HUNG_UP_STATUS
        except Exception:
            logger.exception("request_failed", request_id=answer.request_id, path=request.path)
            await answer.fail(unexpected_error(answer.request_id))
        finally:
            self.count(request)

    @abstractmethod
    async def serve(self, caller: Caller, request: FrontRequest) -> None:
        """Answer a request.

        Args:
            caller: Whose key came with it.
            request: The request; its ``lane`` is set here when it is known to be the caller's.

        Raises:
            BrineryError: Becomes the answer.
            HungUpError: Nobody is there to be answered.
        """

    @abstractmethod
    def count(self, request: FrontRequest) -> None:
        """Note in the metrics how a request ended."""


async def read_body(receive: Receive, headers: Headers) -> bytes:
    """Return a request's whole body.

    Raises:
        PayloadTooLargeError: It is larger than `MAX_BODY_BYTES`.
        InvalidRequestError: It did not come within `BODY_SECONDS`.
        HungUpError: The client left before its end.
    """
    if int(headers.get(b"content-length", b"0")) > MAX_BODY_BYTES:
        raise _too_large()
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")  # nearly every request comes in one piece
        return body
    parts = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                if message["type"] == "http.disconnect":
                    raise HungUpError
                parts += message.get("body", b"")
                if len(parts) > MAX_BODY_BYTES:
                    raise _too_large()
                if not message.get("more_body", False):
                    return bytes(parts)
                message = await receive()
    except TimeoutError:
        raise InvalidRequestError(f"The body did not arrive within {BODY_SECONDS:.0f} s; send it again.") from None


def _too_large() -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"The body is larger than {MAX_BODY_BYTES // 2**20} MiB; pass a reference to the data instead.",
        max_bytes=MAX_BODY_BYTES,
    )
