"""What names, ids, a `retry_for`, a webhook and an image's places have to look like; standard library only."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import urlsplit

from brinery.errors import InvalidRequestError

MAX_RETRY_FOR: Final = 20
MAX_RETRY_FOR_CHARS: Final = 200
MAX_PLACE_CHARS: Final = 500
MAX_EGRESS_HOSTS: Final = 64
MAX_EGRESS_CHARS: Final = 4000
"""Of all hosts together: they travel in the address of a proxy."""
_EGRESS_HOST: Final = re.compile(
    r"(\*\.)?(?=[^:]{1,253}(:|$))[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*"
    r"(:(?P<port>[1-9][0-9]{0,4}))?"
)
_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?")
_ROOT: Final = re.compile(r"(root|0+)(:.*)?")
_NO_PLACES: Final = frozenset({"dev", "proc", "sys"})
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


def check_egress(egress: str | list[str]) -> None:
    """Refuse what does not say where an endpoint's workers may connect to.

    It is ``on``, ``off``, or a list of hosts: ``api.example.com`` for its ports 80 and 443, ``api.example.com:8443``
    for that port alone, ``*.example.com`` for all names below it, itself not among them.

    Raises:
        InvalidRequestError: With the rule in its text.
    """
    if isinstance(egress, str):
        if egress not in {"on", "off"}:
            raise InvalidRequestError(
                f"egress: {egress!r} is neither 'on' nor 'off'; give one of them, or a list of hosts such as "
                "['api.example.com', '*.example.org:8443'].",
                field="egress",
            )
        return
    if not egress:
        raise InvalidRequestError("egress: the list of hosts is empty; say 'off' for no host at all.", field="egress")
    if len(egress) > MAX_EGRESS_HOSTS or sum(map(len, egress)) > MAX_EGRESS_CHARS:
        raise InvalidRequestError(
            f"egress: at most {MAX_EGRESS_HOSTS} hosts are taken, of {MAX_EGRESS_CHARS:,} characters together.",
            field="egress",
        )
    for host in egress:
        if host in {"on", "off"}:
            raise InvalidRequestError(
                f"egress: {host!r} stands alone; give 'on', 'off', or a list with nothing but hosts.", field="egress"
            )
        found = _EGRESS_HOST.fullmatch(host)
        if found is None or int(found["port"] or 1) > 65535:
            raise InvalidRequestError(
                f"egress: {host[:MAX_PLACE_CHARS]!r} is no host; write 'api.example.com', '*.example.com' or either "
                "with a port, as in 'api.example.com:8443', in lower case, without a scheme and without a path.",
                field="egress",
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


def check_reference(reference: str) -> None:
    """Refuse what cannot name an image.

    Raises:
        InvalidRequestError: With the rule in its text.
    """
    if not reference.isascii() or not reference.isprintable() or " " in reference or not reference[:1].isalnum():
        raise InvalidRequestError(
            f"{reference!r} is no image: give its name and tag, such as 'registry.example.com/team/model:3', its "
            "digest or its id.",
            field="reference",
        )


def check_route(route: str, field: str) -> None:
    """Refuse what cannot stand in the first line of a request.

    Args:
        route: Such as ``/v1/predict``, perhaps with a query.
        field: Which one, for the text of an error.

    Raises:
        InvalidRequestError: With the rule in its text.
    """
    written = route.isascii() and route.isprintable() and " " not in route and "#" not in route
    if not route.startswith("/") or not written or len(route) > MAX_PLACE_CHARS:
        raise InvalidRequestError(
            f"{field}: {route[:MAX_PLACE_CHARS]!r} is no route; begin it with '/', as in '/predict', and write it in "
            "printable ASCII without blanks.",
            field=field,
        )


def check_image_user(user: str) -> None:
    """Refuse a user that is none, or root.

    Raises:
        InvalidRequestError: With the rule in its text.
    """
    if user and not _USER.fullmatch(user):
        raise InvalidRequestError(f"user: {user!r} is no user; give a name or an id, perhaps with ':' and a group.")
    if _ROOT.fullmatch(user):
        raise InvalidRequestError(f"user: {user!r} is root, as which no worker runs; give another name or id.")


def read_volume(volume: str) -> tuple[str, str, bool]:
    """Take a volume's text apart.

    Args:
        volume: ``name:/path``, ``name:/path:ro``, or a folder of the host in the name's place.

    Returns:
        The name, or the host's folder; the place in the container; whether it is read-only.

    Raises:
        InvalidRequestError: With the rule in its text.
    """
    source, _, rest = volume.partition(":")
    place, colon, mode = rest.partition(":")
    if not source or not place or (colon and mode not in {"ro", "rw"}):
        raise InvalidRequestError(
            f"volumes: {volume!r} is no volume; write 'name:/path', or 'name:/path:ro'.", field="volumes"
        )
    if source.startswith("/"):
        _check_place(source, "volumes")
    else:
        check_name(source, "volume")
    return source, place, mode == "ro"


def check_places(volumes: Iterable[str], scratch: Iterable[str]) -> None:
    """Refuse folders of a container that cannot be, or that two things want.

    Raises:
        InvalidRequestError: With the rule in its text.
    """
    taken = set[str]()
    places = [("volumes", read_volume(volume)[1]) for volume in volumes]
    for field, place in [*places, *(("scratch", folder) for folder in scratch)]:
        _check_place(place, field)
        if place in taken:
            raise InvalidRequestError(f"{field}: {place!r} is named twice; only one thing can be there.", field=field)
        taken.add(place)


def _check_place(place: str, field: str) -> None:
    plain = place.startswith("/") and place == posixpath.normpath(place) and not place.startswith("//")
    written = place.isprintable() and ":" not in place and len(place) <= MAX_PLACE_CHARS
    if not plain or not written or place == "/" or place.split("/")[1] in _NO_PLACES:
        raise InvalidRequestError(
            f"{field}: {place[:MAX_PLACE_CHARS]!r} is no folder for that; give a whole path such as '/data', without "
            "'..' and ':', outside of /dev, /proc and /sys.",
            field=field,
        )
