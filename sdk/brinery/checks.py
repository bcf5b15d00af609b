"""What a name, a task's id, a `retry_for` and a webhook's address have to look like; standard library only."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import urlsplit

from brinery.errors import InvalidRequestError

MAX_RETRY_FOR: Final = 20
MAX_RETRY_FOR_CHARS: Final = 200
_TASK_ID: Final = re.compile(r"tsk_[A-Za-z0-9_-]{1,60}")
_STATUS_SLIP: Final = re.compile(r"(HTTP|http)_?[0-9]*")
"""What is meant as a status, such as ``HTTP503``; as a class's name it would never match."""


def check_name(name: str, what: str) -> None:
    """Refuse a name that would not fit into a URL, a DNS label and a file name alike.

    Raises:
        InvalidRequestError: With the rule in its text.
    """
    valid = (
        0 < len(name) <= 63
        and name.isascii()
        and name[0].isalnum()
        and name[-1].isalnum()
        and all((char.isalnum() and not char.isupper()) or char == "-" for char in name)
    )
    if not valid:
        raise InvalidRequestError(
            f"{name!r} is no valid {what} name: use up to 63 lower-case letters, digits and inner hyphens."
        )


def check_task_id(task_id: Any) -> str:
    """Return a task's id.

    Raises:
        InvalidRequestError: It is none, of whatever type it is.
    """
    if not isinstance(task_id, str) or not _TASK_ID.fullmatch(task_id):
        raise InvalidRequestError(
            f"{task_id!r} is no task id: that is tsk_ and up to 60 letters, digits, '_' and '-'.", field="task_id"
        )
    return task_id


def check_retry_for(entries: list[str]) -> None:
    """Refuse an entry that could never match.

    An entry is ``HTTP 503``, the worker's status; ``ValueError``, the last part of the name of the exception's class or
    of one of its bases; or ``requests.exceptions.Timeout``, the whole name of one of them.

    Raises:
        InvalidRequestError: With the rule in its text.
    """
    if len(entries) > MAX_RETRY_FOR:
        raise InvalidRequestError(f"retry_for: {len(entries)} entries are too many; at most {MAX_RETRY_FOR} are taken.")
    for entry in entries:
        by_status = re.fullmatch("HTTP [45][0-9][0-9]", entry)
        by_name = len(entry) <= MAX_RETRY_FOR_CHARS and all(part.isidentifier() for part in entry.split("."))
        by_name = by_name and not _STATUS_SLIP.fullmatch(entry)
        if not by_status and not by_name:
            raise InvalidRequestError(
                f"retry_for: {entry[:MAX_RETRY_FOR_CHARS]!r} is neither an exception's name, such as 'ValueError' or "
                "'requests.exceptions.Timeout', nor a status of an error, such as 'HTTP 503'.",
                field="retry_for",
            )


def check_webhook_url(url: str) -> None:
    """Refuse an address that no webhook can be sent to.

    Raises:
        InvalidRequestError: With the rule in its text.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    written = url.isprintable() and " " not in url
    if parts.scheme not in {"http", "https"} or not host or port == 0 or "@" in parts.netloc or not written:
        raise InvalidRequestError(
            "webhook: give an http:// or https:// URL without blanks and without a user in it (username and password "
            "have fields of their own), such as https://example.org/hook.",
            field="webhook",
        )
