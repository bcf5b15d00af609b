"""One GET of a worker that may be hostile: bounded in bytes, and in time as a whole, however slowly it answers."""

from __future__ import annotations

import re
import socket
import time
from typing import Final
from urllib.parse import urlsplit

MAX_BYTES: Final = 256 * 1024
_PIECE_BYTES: Final = 64 * 1024
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})\b")


def small_get(url: str, *, seconds: float) -> tuple[int, bytes]:
    """Return status and body; no redirect is followed.

    Args:
        url: ``http://host:port/path``.
        seconds: Limit of connecting, asking and reading together.

    Raises:
        OSError: Nobody answers, or not in time.
        ValueError: What comes is longer than `MAX_BYTES`, or no HTTP.
    """
    deadline = time.monotonic() + seconds
    parts = urlsplit(url)
    answer = bytearray()
    with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=seconds) as connection:
        asked = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
        connection.sendall(asked.encode())
        while True:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            piece = connection.recv(_PIECE_BYTES)
            if not piece:
                break
            answer += piece
            if len(answer) > MAX_BYTES or time.monotonic() > deadline:
                raise ValueError("the answer does not end")
    found = _STATUS.match(answer)
    head, separator, body = bytes(answer).partition(b"\r\n\r\n")
    if found is None or not separator:
        raise ValueError(f"this is no HTTP: {head[:60]!r}")
    return int(found[1]), body
