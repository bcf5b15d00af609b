"""What sessions of processes use, by Linux's ``/proc``, in one look at all of them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from brinery_platform.runtimes import detached
from brinery_platform.runtimes.base import Usage

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def usage_of(sessions: Iterable[int]) -> dict[int, Usage]:
    """Return what the processes of each session use together; a session without any is left out.

    What processes share, as after a fork, is counted once. Nothing limits them here, so there is no memory limit.
    """
    wanted = set(sessions)
    members: dict[int, list[Usage]] = defaultdict(list)
    for state in detached.scan() if wanted else ():
        if state.session in wanted:
            try:
                members[state.session].append(_usage(Path(f"/proc/{state.identity.pid}")))
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
    return {
        session: Usage(
            cpu_seconds=sum(one.cpu_seconds for one in found),
            memory_bytes=sum(one.memory_bytes for one in found),
            memory_limit_bytes=0,
            pids=sum(one.pids for one in found),
        )
        for session, found in members.items()
    }


def _usage(process: Path) -> Usage:
    raw = (process / "stat").read_bytes()
    fields = raw[raw.rindex(b")") + 2 :].split()  # see proc(5); the first one here is the state
    ticks = sum(int(field) for field in fields[11:15])  # its own and those of its children that have ended
    share = next(
        (line.split()[1] for line in (process / "smaps_rollup").read_bytes().splitlines() if line.startswith(b"Pss:")),
        b"0",
    )
    return Usage(
        cpu_seconds=ticks / _TICKS_A_SECOND,
        memory_bytes=int(share) * 1024,
        memory_limit_bytes=0,
        pids=int(fields[17]),
    )
