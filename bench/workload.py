"""The one trivial function that every server of the benchmarks serves."""

from __future__ import annotations

from typing import Final

ARGUMENTS: Final[dict[str, list[float]]] = {"numbers": [5.1, 3.5, 1.4, 0.2]}


def describe(numbers: list[float]) -> dict[str, float]:
    """Return the sum and the largest of some numbers."""
    return {"total": sum(numbers), "largest": max(numbers)}
