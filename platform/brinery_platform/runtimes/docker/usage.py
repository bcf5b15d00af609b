"""What containers use: one call to the engine for each, a few at a time."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from brinery_platform.runtimes.base import Usage
from brinery_platform.runtimes.docker.engine import Engine, Facts

AT_A_TIME: Final = 8
_NANOSECONDS: Final = 1e9


def usage_of(engine: Engine, names: Mapping[str, str]) -> dict[str, Usage]:
    """Return what containers use; one that does not run is left out.

    Args:
        engine: Where they run.
        names: Worker id → its container's name.

    Raises:
        UnavailableError: The engine does not answer.
    """
    if not names:
        return {}

    def ask(name: str) -> Facts | None:
        # In one shot: the engine would otherwise look twice, a second apart, to work out a share itself.
        facts: Facts | None = engine.ask(lambda client: client.stats(name, stream=False, one_shot=True))
        return facts

    with ThreadPoolExecutor(max_workers=min(AT_A_TIME, len(names))) as pool:
        answers = zip(names, pool.map(ask, names.values()), strict=True)
        return {worker_id: _usage(facts) for worker_id, facts in answers if facts and facts["memory_stats"]}


def _usage(facts: Facts) -> Usage:
    memory = facts["memory_stats"]
    details = memory.get("stats", {})
    # Files that were read are given back when memory is short; the name depends on the version of control groups.
    cached = details.get("total_inactive_file", details.get("inactive_file", 0))
    return Usage(
        cpu_seconds=facts["cpu_stats"]["cpu_usage"]["total_usage"] / _NANOSECONDS,
        memory_bytes=max(0, memory["usage"] - cached),
        memory_limit_bytes=memory.get("limit", 0),
        pids=facts["pids_stats"].get("current", 0),
    )
