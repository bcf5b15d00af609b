"""One request for user code, read from its headers and body before it takes a slot."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from brinery.errors import BrineryError, InvalidRequestError, PayloadTooLargeError, UnsupportedPayloadError
from brinery.request import RequestContext
from brinery.spec import CONTENT_JSON, CONTENT_PICKLE, MAX_BODY_BYTES, new_id
from brinery_worker.failures import remote_error, report
from brinery_worker.predictor import Predictor

# `curl -d '{…}'` says that it sends a form, and other clients say nothing; what counts is that it parses.
_JSON_TYPES: Final = frozenset({"", CONTENT_JSON, "application/x-www-form-urlencoded"})


class Call:
    """A request that may run.

    Args:
        predictor: The user's code.
        environ: The WSGI environment.

    Attributes:
        pickled: Whether arguments and result are pickles.
        context: What user code may know of the request.
        timeout_seconds: Its limit, None for none.
        bind: Makes the positional and keyword arguments; code of the user's own types may run.

    Raises:
        InvalidRequestError: A header or an argument is not valid.
        UnsupportedPayloadError: The body is neither JSON nor a pickle.
        PayloadTooLargeError: The body is over `MAX_BODY_BYTES`.
    """

    def __init__(self, predictor: Predictor, environ: dict[str, Any]) -> None:
        kind = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
        self.pickled = kind == CONTENT_PICKLE
        if not self.pickled and kind not in _JSON_TYPES:
            raise UnsupportedPayloadError(
                f"The body's content type is {kind!r}; send {CONTENT_JSON}, or {CONTENT_PICKLE} with a pickle."
            )
        self.context = RequestContext(
            environ.get("HTTP_X_BRINERY_REQUEST_ID") or new_id("req"),
            environ.get("HTTP_X_BRINERY_TASK_ID") or None,
            int(_number(environ, "HTTP_X_BRINERY_ATTEMPT", "X-Brinery-Attempt") or 1),
        )
        self.timeout_seconds = _number(environ, "HTTP_X_BRINERY_TIMEOUT_SECONDS", "X-Brinery-Timeout-Seconds")
        body = _read_body(environ)
        arguments = predictor.arguments
        self.bind: Callable[[], tuple[Any, dict[str, Any]]]
        if self.pickled:
            self.bind = lambda: arguments.unpickle(body)
        else:
            given = arguments.check(body)
            self.bind = lambda: arguments.bind(given)

    def failed(self, error: BaseException) -> BrineryError:
        """Return the error to answer with when user code raised `error`, and log it."""
        remote = remote_error(error)
        report(f"request {self.context.request_id}", remote)
        return remote


def _read_body(environ: dict[str, Any]) -> bytes:
    # Not by Flask, which cuts a chunked body at its limit and takes the rest for the whole.
    announced = int(environ.get("CONTENT_LENGTH") or 0)
    if announced > MAX_BODY_BYTES:
        raise PayloadTooLargeError
    body: bytes = environ["wsgi.input"].read(MAX_BODY_BYTES + 1)
    if len(body) > MAX_BODY_BYTES:
        raise PayloadTooLargeError
    if len(body) < announced:
        raise InvalidRequestError(f"The body ended after {len(body)} of {announced} bytes; send it again.")
    return body


def _number(environ: dict[str, Any], variable: str, header: str) -> float | None:
    text = environ.get(variable)
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise InvalidRequestError(f"Header {header} is {text!r}; send a number above 0.")
    return number
