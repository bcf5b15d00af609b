"""A worker as the controller knows it, and the starts that went wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from brinery_platform.runtimes.base import Running

MAX_BACK_OFF_SECONDS: Final = 300.0


@dataclass
class Worker:
    """One worker of ours and what is known of it."""

    running: Running
    started_at: float
    ready: bool = False
    silent_since: float | None = None
    told: str = ""
    """What was last logged of why it is not ready."""

    @property
    def supervised(self) -> bool:
        """Whether it has a supervisor to ask; an image has none."""
        return not self.running.ready_route


@dataclass
class Failures:
    """Starts that went wrong, one after the other, of one version."""

    count: int = 0
    reason: str = ""
    fatal: bool = False
    retry_at: float = 0.0

    def note(self, reason: str, *, fatal: bool, now: float) -> None:
        """Add one, and put the next start off: 1 s, 2 s, 4 s and so on."""
        self.count += 1
        self.reason = reason
        self.fatal = self.fatal or fatal
        self.retry_at = now + min(2.0 ** (self.count - 1), MAX_BACK_OFF_SECONDS)


def failure_text(error: dict[str, object] | None) -> str:
    """Return what a supervisor said of a failed load, as a person wants to read it."""
    inner = (error or {}).get("error")
    if not isinstance(inner, dict):
        return "The bundle could not be loaded."
    context = inner.get("context") or {}
    kind = context.get("exception_type")
    trace = context.get("traceback") or ""
    text = f"{kind}: {inner.get('message')}" if kind else str(inner.get("message"))
    return f"Loading failed with {text}\n{trace}".strip()
