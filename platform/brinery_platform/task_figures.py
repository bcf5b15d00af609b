"""What is counted of an endpoint's tasks, for whoever watches it: one script, the meaning of its reply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from brinery_platform.transitions import Backlog, Call, to_backlog


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What is counted of an endpoint's tasks.

    Args:
        backlog: Those that are not final.
        dead: Dead letters.
        finished: How many have ended since the endpoint was made, by status.
    """

    backlog: Backlog
    dead: int
    finished: dict[str, int]


def figures(endpoint_id: str) -> Call[Figures]:
    """Count an endpoint's tasks, those that have ended too."""

    def parse(reply: list[Any]) -> Figures:
        counts = iter(reply[4])
        finished = {status.decode(): int(count) for status, count in zip(counts, counts, strict=True)}
        return Figures(backlog=to_backlog(reply), dead=reply[3], finished=finished)

    return Call(name="figures", arguments=(endpoint_id,), parse=parse)
