"""Who an image's server runs as: never root, in numbers, which no file of the image can make something else of."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Sequence
from typing import Final

from brinery.errors import DeploymentError
from brinery_platform.runtimes.docker import sandbox

NOBODY: Final = f"{sandbox.WORKER}:{sandbox.WORKER}"

Read = Callable[[str], str]
"""Returns the text of a file of the image, ``""`` where there is none."""


def user_of(own: str, chosen: str, read: Read) -> str:
    """Return the user and the group of an image's server as ``uid:gid``.

    Args:
        own: What the image says, such as ``app``, ``1000`` or ``1000:1000``; ``""`` for root.
        chosen: What the endpoint says instead; ``""`` for nothing.
        read: Reads ``/etc/passwd`` and ``/etc/group`` where a name has to be looked up.

    Returns:
        The chosen one; else the image's own, or `NOBODY` where that is root or nobody that the image knows.

    Raises:
        DeploymentError: The chosen one is root, or nobody that the image knows.
    """
    if chosen:
        found = _numbers(chosen, read)
        if found is None:
            raise DeploymentError(f"The image knows no user {chosen!r}; give the number of one as user, such as 1000.")
        if found[0] == 0:
            raise DeploymentError(f"User {chosen!r} of the image is root, as which no worker runs; give another one.")
    else:
        found = _numbers(own, read) if own else None
    return NOBODY if found is None or found[0] == 0 else f"{found[0]}:{found[1]}"


def file_text(archive: bytes) -> str:
    """Return the text of the one file in a tar archive; ``""`` where it is no plain file."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None:
                return file.read().decode(errors="replace")
    return ""


def _numbers(text: str, read: Read) -> tuple[int, int] | None:
    user, _, group = text.partition(":")
    if user.isdecimal() and group.isdecimal():
        return int(user), int(group)
    entry = _entry(read("/etc/passwd"), user, (0, 2))
    if entry is None and not user.isdecimal():
        return None
    uid = int(entry[2]) if entry else int(user)
    if not group:
        return uid, int(entry[3]) if entry and entry[3].isdecimal() else uid
    if group.isdecimal():
        return uid, int(group)
    named = _entry(read("/etc/group"), group, (0,))
    return None if named is None else (uid, int(named[2]))


def _entry(file: str, wanted: str, fields: Sequence[int]) -> list[str] | None:
    """Return the line of a file such as ``/etc/passwd`` that has the wanted text in one of these fields."""
    for line in file.splitlines():
        entry = line.split(":")
        if len(entry) >= 4 and entry[2].isdecimal() and wanted in {entry[place] for place in fields}:
            return entry
    return None
