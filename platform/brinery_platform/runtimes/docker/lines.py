"""A container's output as lines, each with the moment at which the engine got it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Final

MOST_LINE_BYTES: Final = 64 * 1024
"""What is longer comes as several lines: nobody holds more than this of a worker that writes without an end."""


def stamped_lines(pieces: Iterable[bytes]) -> Iterator[tuple[float, str]]:
    """Yield seconds since the epoch and the text of each line.

    Args:
        pieces: As `Engine.logs` gives them with `stamped`: a time, a space, and a line or a part of one.
    """
    rest, began = b"", 0.0
    for piece in pieces:
        stamp, _, said = piece.partition(b" ")
        began = began if rest else _seconds(stamp)
        rest += said
        if rest.endswith(b"\n") or len(rest) >= MOST_LINE_BYTES:
            yield began, _text(rest.removesuffix(b"\n"))
            rest = b""
    if rest:
        yield began, _text(rest)


def _seconds(stamp: bytes) -> float:
    """Return what ``2026-11-21T17:05:17.123456789Z`` means; Python's own parser drops the last three digits."""
    whole, _, fraction = stamp.decode(errors="replace").rstrip("Z").partition(".")
    try:
        return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{fraction or 0}")
    except ValueError:
        return time.time()


def _text(line: bytes) -> str:
    return line.decode(errors="replace").removesuffix("\r")
