"""Every error of Brinery, with the HTTP status that carries it.

::

    BrineryError                    500
    ├── InvalidRequestError         422  the request, bundle or setting is wrong; the text says what to change
    │   └── PackingError                 the function cannot be packed (SDK only)
    ├── AuthenticationError         401
    ├── SignatureError              401  a webhook's signature is not that of its body (`brinery.webhooks` only)
    ├── PermissionDeniedError       403
    ├── NotFoundError               404
    ├── ConflictError               409
    ├── PayloadTooLargeError        413
    ├── UnsupportedPayloadError     415
    ├── OverloadedError             429  try again after ``retry_after_seconds``
    │   └── WorkerBusyError         429  every slot of one worker is taken; never counts as an attempt
    ├── RemoteError                 500  the user's function raised; type, message and traceback are its own
    ├── WorkerError                 502  the worker died or answered nonsense
    ├── UnavailableError            503  a part of the platform is away
    ├── DeploymentError             503  the endpoint cannot become ready; carries the reason
    ├── UpstreamTimeoutError        504  no answer within the attempt's timeout
    ├── TaskCancelledError          409  a future's task was cancelled
    └── TaskExpiredError            409  a future's task expired in the queue

On the wire an error is ``{"error": {"type", "message", "context"}}``; ``type`` is the class name without
``Error`` in snake case. `BrineryError.to_json` and `error_from_json` are the only two places that know it.
"""

from __future__ import annotations

import json
import re
from typing import Any, ClassVar, Final

MAX_WORDS_BYTES: Final = 1000
"""How much of an image's own words about an error are kept."""


class BrineryError(Exception):
    """Something went wrong inside Brinery.

    Args:
        message: What happened and what to do next; the class docstring's first line when left out.
        context: Ids and small facts for programs; never payloads or secrets.
    """

    status: ClassVar[int] = 500

    def __init__(self, message: str | None = None, **context: Any) -> None:
        self.message = message or (self.__doc__ or "").strip().splitlines()[0].replace("``", "`")
        self.context = context
        super().__init__(self.message)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.context))

    @classmethod
    def wire_type(cls) -> str:
        """Return the name of this class on the wire, such as ``not_found``."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__.removesuffix("Error")).lower()

    def to_json(self) -> dict[str, Any]:
        """Return the wire form, ``{"error": {"type", "message", "context"}}``."""
        return {"error": {"type": self.wire_type(), "message": self.message, "context": self.context}}


class InvalidRequestError(BrineryError):
    """The request is not valid."""

    status = 422


class PackingError(InvalidRequestError):
    """The function cannot be packed into a bundle."""


class AuthenticationError(BrineryError):
    """No valid API key came with the request; send ``Authorization: Bearer <key>``."""

    status = 401


class SignatureError(BrineryError):
    """The webhook is not signed with this secret, or too old; answer 401 and do nothing that it says."""

    status = 401


class PermissionDeniedError(BrineryError):
    """This key may not do that."""

    status = 403


class NotFoundError(BrineryError):
    """There is nothing of that name or id that this key may see."""

    status = 404


class ConflictError(BrineryError):
    """The request does not fit the present state."""

    status = 409


class PayloadTooLargeError(BrineryError):
    """The body is too large; upload it with ``PUT /v1/objects/{id}`` and pass the reference."""

    status = 413


class UnsupportedPayloadError(BrineryError):
    """The body's content type is not one that this endpoint takes."""

    status = 415


class OverloadedError(BrineryError):
    """Too much is waiting already; try again after the time in ``Retry-After``."""

    status = 429


class WorkerBusyError(OverloadedError):
    """Every slot of the worker is taken; this was not an attempt."""


class RemoteError(BrineryError):
    """The user's function raised.

    ``context`` holds ``exception_type`` (the class name), ``exception_bases`` (names along its bases, nearest
    first), and ``traceback`` (text, as Python prints it). An image's own error has ``http_status`` alone.
    """

    status = 500

    def __str__(self) -> str:
        kind = self.context.get("exception_type")
        text = f"{kind}: {self.message}" if kind else self.message
        return f"{text}\n\nRemote traceback:\n{self.remote_traceback}" if self.remote_traceback else text

    @property
    def remote_traceback(self) -> str:
        """The traceback as text; empty where it has no frames and only says again what the error says."""
        text = str(self.context.get("traceback") or "")
        # What is left of such a one is a class name, perhaps with its module in front.
        left = text.strip().removesuffix(f": {self.message}".rstrip())
        return text if len(left.split()) > 1 else ""


class WorkerError(BrineryError):
    """The worker died or gave no valid answer."""

    status = 502


class UnavailableError(BrineryError):
    """A part of the platform that this request needs is away; try again shortly."""

    status = 503


class DeploymentError(BrineryError):
    """The endpoint cannot become ready."""

    status = 503


class UpstreamTimeoutError(BrineryError):
    """The worker gave no answer within the attempt's timeout."""

    status = 504


class TaskCancelledError(BrineryError):
    """The task was cancelled."""

    status = 409


class TaskExpiredError(BrineryError):
    """The task expired before a worker could take it."""

    status = 409


def _subclasses(cls: type[BrineryError]) -> list[type[BrineryError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in _subclasses(child))]


def error_from_json(body: Any, *, status: int = 500) -> BrineryError:
    """Rebuild the error that `BrineryError.to_json` wrote.

    Args:
        body: The decoded JSON body of a reply, of any shape.
        status: The reply's HTTP status, used where the body is not one of ours.

    Returns:
        An instance of the class named in the body, or `BrineryError` with what could be read.
    """
    error = _inner(body)
    if error is None:
        return BrineryError(f"The platform answered with status {status} and no readable error.", status=status)
    classes = {cls.wire_type(): cls for cls in _subclasses(BrineryError)}
    context = error.get("context")
    return _rebuild(
        classes.get(str(error.get("type")), BrineryError),
        error["message"],
        context if isinstance(context, dict) else {},
    )


def error_from_worker(content: bytes, *, status: int) -> BrineryError:
    """Return the error that a worker answered.

    Args:
        content: The reply's body: one of our errors, or the words of an image that knows nothing of ours.
        status: The reply's HTTP status.

    Returns:
        As `error_from_json`; for an image's words a `RemoteError` that holds the first of them and ``http_status``.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):  # a UnicodeDecodeError is a ValueError
        body = None
    if _inner(body) is not None:
        return error_from_json(body, status=status)
    said = content[:MAX_WORDS_BYTES].decode(errors="replace").strip()
    return RemoteError(f"The worker answered with status {status}{f': {said}' if said else ''}", http_status=status)


def _inner(body: Any) -> dict[str, Any] | None:
    """Return what lies under ``error`` in a body of ours, None if it is none."""
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) and isinstance(error.get("message"), str) else None


def _rebuild(cls: type[BrineryError], message: str, context: dict[str, Any]) -> BrineryError:
    error = cls(message)
    error.context = context
    return error
