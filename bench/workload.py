"""The trivial functions of the benchmarks; they travel to workers with this file, which needs nothing else."""

from __future__ import annotations

import time
from typing import Final

ARGUMENTS: Final[dict[str, list[float]]] = {"numbers": [5.1, 3.5, 1.4, 0.2]}


def describe(numbers: list[float]) -> dict[str, float]:
    """Return the sum and the largest of some numbers."""
    return {"total": sum(numbers), "largest": max(numbers)}


def stall(numbers: list[float]) -> None:
    """Take a worker's only slot for good, so that whatever comes after it waits in the queue."""
    time.sleep(3600 + len(numbers))
