"""Why a process ended: its wait status in words, and whether the kernel killed it for memory."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_CGROUP_ROOT = Path("/sys/fs/cgroup")


class Exit(NamedTuple):
    """How a serving process ended.

    Args:
        code: Exit code, None when a signal ended it.
        signal: Number of the signal that ended it, else None.
        reason: In a sentence.
    """

    code: int | None
    signal: int | None
    reason: str


def describe_exit(status: int, *, killed_because: str | None, out_of_memory: bool) -> Exit:
    """Put a wait status into words.

    Args:
        status: As ``os.waitpid`` gives it.
        killed_because: Why we killed it ourselves, or None when we did not.
        out_of_memory: Whether the kernel killed something in our cgroup for memory while it ran.
    """
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return Exit(code, None, f"the serving process ended by itself with exit code {code}")
    number = -code
    if killed_because is not None:
        return Exit(None, number, killed_because)
    if number == signal.SIGKILL and out_of_memory:
        return Exit(None, number, f"killed: out of memory{_at_limit()}; raise memory_mib or use less")
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = "unnamed"
    return Exit(None, number, f"the serving process was killed by signal {number} ({name})")


def out_of_memory_kills() -> int:
    """Return how many processes the kernel has killed for memory in our cgroup so far; 0 where it does not say."""
    counts = (_count(text) for text in _read("memory.events", "memory.oom_control"))
    return next((count for count in counts if count is not None), 0)


def _at_limit() -> str:
    """Return " at 512 MiB", or nothing where the cgroup has no limit of its own."""
    for text in _read("memory.max", "memory.limit_in_bytes"):
        # Without a limit it says "max", or in the older cgroups a number that no machine has.
        if text.strip().isdigit() and int(text) < 2**60:
            return f" at {int(text) // 2**20} MiB"
    return ""


def _read(name: str, older_name: str) -> Iterator[str]:
    """Yield the contents of a file of our cgroup's memory controller, wherever it is mounted: none, one or two.

    Args:
        name: Its name in cgroup v2.
        older_name: What says the same in cgroup v1.
    """
    try:
        memberships = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        if controllers == "":
            files = [_CGROUP_ROOT / path.lstrip("/") / name, _CGROUP_ROOT / name]
        elif "memory" in controllers.split(","):
            root = _CGROUP_ROOT / "memory"  # inside a container its own group is mounted as the root
            files = [root / path.lstrip("/") / older_name, root / older_name]
        else:
            continue
        for file in files:
            with contextlib.suppress(OSError):
                yield file.read_text(encoding="ascii")


def _count(text: str) -> int | None:
    counts = [line.split()[1] for line in text.splitlines() if line.startswith("oom_kill ")]
    return int(counts[0]) if counts else None
