"""Server-sent events, read from the pieces in which a body comes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Event = tuple[str, str]
"""An event's name, ``message`` where it has none, and its data."""


class LineReader:
    """Lines out of pieces: split at line feeds alone, for JSON may contain U+2028 and whatever `splitlines` knows."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the lines that this piece completes, without their ends."""
        first, *others = piece.split(b"\n")
        self._rest.append(first)
        if not others:
            return []
        lines = [b"".join(self._rest), *others[:-1]]
        self._rest = [others[-1]]
        return [line.removesuffix(b"\r") for line in lines]

    def rest(self) -> bytes:
        """Return what came after the last line feed."""
        return b"".join(self._rest)


class EventReader:
    """Events out of pieces.

    Source: WHATWG HTML, 9.2.6 "Interpreting an event stream".
    """

    def __init__(self) -> None:
        self._lines = LineReader()
        self._name = "message"
        self._data: list[str] = []

    def feed(self, piece: bytes) -> list[Event]:
        """Return the events that this piece completes."""
        return [event for line in self._lines.feed(piece) if (event := self._read(line.decode())) is not None]

    def _read(self, line: str) -> Event | None:
        event = None
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if self._data:
                event = self._name, "\n".join(self._data)
            self._name, self._data = "message", []
        elif name == "event":
            self._name = value
        elif name == "data":
            self._data.append(value)
        return event


def server_sent_events(pieces: Iterable[bytes]) -> Iterator[Event]:
    """Yield each event of a body as it is complete."""
    reader = EventReader()
    for piece in pieces:
        yield from reader.feed(piece)


def lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield each line of a body, and in the end what has no line feed behind it."""
    reader = LineReader()
    for piece in pieces:
        yield from reader.feed(piece)
    if rest := reader.rest():
        yield rest
