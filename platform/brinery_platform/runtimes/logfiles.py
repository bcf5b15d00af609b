"""Log files that a process writes by itself, kept bounded and read from their end by somebody else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from brinery_platform.runtimes.base import LogMark

LOG_BYTES: Final = 16 * 1024 * 1024
"""Size at which a log is moved to ``<name>.1``; a process has thus at most about twice that on disk."""
LOGS_KEPT: Final = 200
"""Logs of ended processes that are kept, the newest ones."""
FOLLOW_SECONDS: Final = 0.2

_BLOCK_BYTES: Final = 64 * 1024


def is_large(log: Path, *, max_bytes: int = LOG_BYTES) -> bool:
    """Return whether it is time to `rotate` a log."""
    return _size(log) > max_bytes


def rotate(log: Path, *, max_bytes: int = LOG_BYTES) -> None:
    """Move a log's end to ``<name>.1`` if it is larger than `max_bytes`, and empty it.

    One at a time for each log. The writer keeps its descriptor, opened for appending; what it writes between the copy
    and the emptying is lost.
    """
    if not is_large(log, max_bytes=max_bytes):
        return
    partial = log.with_name(log.name + ".1.partial")
    with log.open("rb") as source:
        source.seek(-max_bytes, os.SEEK_END)
        partial.touch(0o600)
        partial.write_bytes(source.read(max_bytes))
    partial.replace(log.with_name(log.name + ".1"))
    os.truncate(log, 0)


def forget_old(folder: Path, *, running: set[str], keep: int = LOGS_KEPT) -> None:
    """Remove the logs of ended processes but for the newest `keep`.

    Args:
        folder: Holds ``<id>.log`` and ``<id>.log.1``.
        running: Ids whose logs stay in any case.
        keep: How many others stay.
    """
    logs: list[tuple[float, Path]] = []
    for log in folder.glob("*.log"):
        if log.stem not in running:
            try:
                logs.append((log.stat().st_mtime, log))
            except FileNotFoundError:
                continue
    for _, log in sorted(logs, reverse=True)[keep:]:
        log.unlink(missing_ok=True)
        log.with_name(log.name + ".1").unlink(missing_ok=True)


def mark(log: Path) -> LogMark:
    """Return where a log ends now; one that is not there yet ends at its beginning."""
    return LogMark(time.time(), _size(log))


def read(
    log: Path, *, tail: int, follow: bool, running: Callable[[], bool], since: LogMark | None = None
) -> Iterator[str]:
    """Yield the last `tail` lines of a log, then with `follow` each new one.

    Args:
        log: The file; one that is not there yet is empty.
        tail: Number of lines; 0 for none.
        follow: Go on until the writer has ended.
        running: Tells whether the writer still runs.
        since: Leave out what was written before; after a rotation since then, what is in the new file.
    """
    offset = _size(log)
    yield from _last_lines(log, offset, tail) if since is None else _lines_since(log, offset, tail, since)
    rest = b""
    while follow:
        # Asked before reading: what an ended writer wrote last is thus always read.
        more_to_come = running()
        size = _size(log)
        if size < offset:  # rotated
            offset = 0
        if size > offset:
            with log.open("rb") as source:
                source.seek(offset)
                data = source.read(_BLOCK_BYTES)
            offset += len(data)
            *lines, rest = (rest + data).split(b"\n")
            yield from map(_text, lines)
        elif more_to_come:
            time.sleep(FOLLOW_SECONDS)
        else:
            break
    if rest:
        yield _text(rest)


def _last_lines(log: Path, size: int, count: int) -> list[str]:
    lines = _read_back(log, size, count)
    older = log.with_name(log.name + ".1")
    if len(lines) < count:
        lines = _read_back(older, _size(older), count - len(lines)) + lines
    return [_text(line) for line in lines]


def _lines_since(log: Path, size: int, count: int, since: LogMark) -> list[str]:
    begin = 0 if size < since.size or _rotated_at(log) > since.at else since.size
    return [_text(line) for line in _read_back(log, size, count, begin)]


def _rotated_at(log: Path) -> float:
    try:
        return log.with_name(log.name + ".1").stat().st_ctime
    except FileNotFoundError:
        return 0.0


def _read_back(log: Path, size: int, count: int, begin: int = 0) -> list[bytes]:
    """Return the last `count` lines of the bytes from `begin` to `size`, reading from the end."""
    if size <= begin or not count:
        return []
    blocks: list[bytes] = []
    newlines = 0
    with log.open("rb") as source:
        end = size
        while end > begin and newlines <= count:
            start = max(begin, end - _BLOCK_BYTES)
            source.seek(start)
            blocks.insert(0, source.read(end - start))
            newlines += blocks[0].count(b"\n")
            end = start
    return b"".join(blocks).removesuffix(b"\n").split(b"\n")[-count:]


def _size(log: Path) -> int:
    try:
        return log.stat().st_size
    except FileNotFoundError:
        return 0


def _text(line: bytes) -> str:
    return line.decode(errors="replace").removesuffix("\r")
