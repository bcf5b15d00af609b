"""What became of the requests that ran when a serving process ended, so that their callers can ask afterwards."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Any, Final, NamedTuple

from brinery_worker.board import Occupied
from brinery_worker.exits import Exit

FATES_KEPT: Final = 4096
"""Requests of which a worker remembers how they ended; the oldest are forgotten first."""


class Fate(NamedTuple):
    """How a request ended that got no answer.

    Args:
        fate: ``stopped``: it did not stop when it was asked, so its process was ended. ``neighbour``: the process was
            ended for the sake of another request, or of the whole worker. ``crashed``: the process ended by itself,
            or somebody else ended it. ``running``: it still runs. ``unknown``: no such request is remembered.
        reason: Why the process ended, in a sentence; empty where it did not.
        others: How many other requests ran in the process when it ended.
    """

    fate: str
    reason: str = ""
    others: int = 0


class Fates:
    """A bounded memory of how requests ended."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, Fate] = OrderedDict()

    def note(self, running: Collection[Occupied], exited: Exit, *, ours: bool, stopped: Collection[bytes]) -> None:
        """Remember what the end of a serving process did to the requests in it.

        Args:
            running: What ran in it.
            exited: How it ended.
            ours: Whether the supervisor ended it.
            stopped: Ids of the requests that were being stopped.
        """
        for request in running:
            fate = "crashed"
            if ours:
                fate = "stopped" if request.request_id in stopped else "neighbour"
            self._known[request.request_id] = Fate(fate, exited.reason, len(running) - 1)
            self._known.move_to_end(request.request_id)
        while len(self._known) > FATES_KEPT:
            self._known.popitem(last=False)

    def find(self, request_id: bytes) -> dict[str, Any]:
        """Return what is remembered of a request, as the fields of a `Fate`."""
        return self._known.get(request_id, Fate("unknown"))._asdict()
