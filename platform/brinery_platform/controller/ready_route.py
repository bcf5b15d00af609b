"""Asks an image whether it can serve: one GET, of whose answer only the first line counts, in a bounded time."""

from __future__ import annotations

import re
import socket
import time
from typing import Final
from urllib.parse import urlsplit

from brinery_platform.controller.health import Health
from brinery_platform.runtimes.base import Running

ASK_SECONDS: Final = 2.0
MAX_LINE_BYTES: Final = 1024
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})\b")


def ask_image(worker: Running) -> Health:
    """Return how an image is.

    Returns:
        ``ready``; ``loading`` where it answers anything but 2xx; ``silent`` where it takes the connection and does not
        answer in time; ``unreachable`` where it takes none. With a `detail`, but for the first.
    """
    deadline = time.monotonic() + ASK_SECONDS
    place = urlsplit(worker.url)
    asked = f"GET {worker.ready_route}"
    try:
        connection = socket.create_connection((place.hostname or "", place.port or 80), timeout=ASK_SECONDS)
    except OSError as error:
        return Health("unreachable", detail=f"port {place.port} takes no connection ({error.strerror or error})")
    with connection:
        try:
            line = _first_line(connection, f"{asked} HTTP/1.1\r\nHost: {place.netloc}\r\n", deadline)
        except TimeoutError:
            return Health("silent", detail=f"{asked} is not answered within {ASK_SECONDS:g} s")
        except OSError as error:
            return Health("loading", detail=f"{asked} ends without an answer ({error.strerror or error})")
    found = _STATUS.match(line)
    if found is None:
        return Health("loading", detail=f"{asked} is not answered in HTTP")
    return (
        Health("ready") if found[1].startswith(b"2") else Health("loading", detail=f"{asked} answers {int(found[1])}")
    )


def _first_line(connection: socket.socket, head: str, deadline: float) -> bytes:
    connection.sendall(f"{head}Accept: */*\r\nConnection: close\r\n\r\n".encode())
    line = b""
    while b"\n" not in line and len(line) < MAX_LINE_BYTES:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        piece = connection.recv(MAX_LINE_BYTES)
        if not piece:
            break
        line += piece
    return line
