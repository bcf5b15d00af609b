"""An exception of the user's code as the error that its caller gets: its classes, message and own traceback."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from brinery.errors import RemoteError

_OURS: Final = str(Path(__file__).resolve().parent) + "/"
_MAX_TEXT_CHARS: Final = 32 * 1024


def remote_error(error: BaseException) -> RemoteError:
    """Describe an exception for the wire.

    Args:
        error: What user code raised, with its traceback.

    Returns:
        The error to answer with; its traceback begins at the user's code. ``exception_classes`` of its context are
        the qualified names of the class and its bases, nearest first; ``http_status`` is there when the exception
        carries one, as those of requests, httpx, aiohttp and urllib do.
    """
    kind = type(error)
    context: dict[str, Any] = {
        "exception_type": kind.__name__,
        "exception_bases": [base.__name__ for base in kind.__mro__[1:-1]],
        "exception_classes": [f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__[:-1]],
        "traceback": _shorten(_traceback(error)),
    }
    status = _http_status(error)
    if status is not None:
        context["http_status"] = status
    return RemoteError(_shorten(_text(error)), **context)


def report(what: str, error: RemoteError) -> None:
    """Write a failure to the log, in one piece.

    Args:
        what: What failed, such as ``request req_…``.
        error: From `remote_error`.
    """
    sys.stderr.write(f"brinery-worker: {what} failed\n{error.context['traceback']}")
    sys.stderr.flush()


def _traceback(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(type(error), error, _user_frames(error.__traceback__)))
    except Exception:  # noqa: BLE001 - the exception's own methods run here, and may raise anything
        return f"{type(error).__name__}\n"


def _user_frames(frames: TracebackType | None) -> TracebackType | None:
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_OURS):
        frames = frames.tb_next
    return frames


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a broken __str__ of the user's must not hide the failure
        return f"<{type(error).__name__} whose text cannot be made>"


def _http_status(error: BaseException) -> int | None:
    """Return the status of the HTTP reply that an exception is about, or None."""
    try:
        found = getattr(getattr(error, "response", None), "status_code", None)  # requests, httpx
        if found is None and isinstance(error, OSError):
            found = getattr(error, "code", None)  # urllib
        if found is None:
            found = getattr(error, "status", None)  # aiohttp
    except Exception:  # noqa: BLE001 - attributes of the user's exceptions may be code that raises anything
        return None
    return found if type(found) is int and 100 <= found <= 599 else None


def _shorten(text: str) -> str:
    if len(text) <= _MAX_TEXT_CHARS:
        return text
    half = _MAX_TEXT_CHARS // 2
    return f"{text[:half]}\n… {len(text) - _MAX_TEXT_CHARS} characters left out …\n{text[-half:]}"
