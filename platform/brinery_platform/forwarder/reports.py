"""What is kept of an attempt that did not succeed: why, where, its error, and the last words of its worker."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any, Final

import orjson

from brinery.errors import BrineryError
from brinery_platform.runtimes import logfiles
from brinery_platform.runtimes.base import LogMark, Visible
from brinery_platform.transitions import Charge, Claim

LOG_LINES: Final = 30
LOG_BYTES: Final = 4 * 1024
LOG_SECONDS: Final = 1.0
"""How long a failed attempt waits for its worker's log."""
MAX_TEXT: Final = 4_000
"""Characters of each text of an error; a task keeps up to 20 reports."""


class WorkerLogs:
    """Reads the ends of workers' logs; for threads. A log that cannot be read, or not soon, is empty.

    Args:
        open_runtime: Returns what keeps the logs; called when one is first wanted.
        home: The platform's home.
    """

    def __init__(self, open_runtime: Callable[[], Visible], home: Path) -> None:
        self._open_runtime = open_runtime
        self._folder = home / "logs" / "workers"
        self._runtime: Visible | None = None
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="worker-log")

    def mark(self, worker_id: str) -> LogMark:
        """Return where a worker's log ends now; costs no more than two looks at the folder."""
        return logfiles.mark(self._folder / f"{worker_id}.log")

    def tail(self, worker_id: str, since: LogMark) -> str:
        """Return the last lines that a worker has written since a mark, `LOG_LINES` and `LOG_BYTES` at most."""
        reading = self._reader.submit(self._read, worker_id, since)
        try:
            return reading.result(LOG_SECONDS)
        except FutureTimeoutError:
            reading.cancel()
            return ""

    def close(self) -> None:
        """Let go of the thread; a log that is being read is not waited for."""
        self._reader.shutdown(wait=False, cancel_futures=True)
        if self._runtime is not None:
            self._runtime.close()

    def _read(self, worker_id: str, since: LogMark) -> str:
        with contextlib.suppress(Exception):  # whatever a runtime raises, a log is never worth an attempt
            self._runtime = self._runtime or self._open_runtime()
            lines = self._runtime.logs(worker_id, tail=LOG_LINES, since=since)
            return "\n".join(lines).encode()[-LOG_BYTES:].decode(errors="ignore")
        return ""


def attempt_report(
    claim: Claim,
    *,
    charge: Charge,
    reason: str,
    worker_id: str | None,
    error: BrineryError,
    ended_at: float,
    log_tail: str,
) -> dict[str, Any]:
    """Return the JSON data that the record keeps of an attempt.

    Args:
        claim: The attempt.
        charge: How it counts.
        reason: As the task's events have it.
        worker_id: Where it ran; None when it never reached a worker.
        error: What came of it; cut to `MAX_TEXT`.
        ended_at: Seconds since the epoch, by the clock of Redis.
        log_tail: From `WorkerLogs.tail`.
    """
    return {
        "attempt": claim.task.attempt,
        "charge": charge,
        "started_at": claim.task.started_at,
        "ended_at": ended_at,
        "reason": reason,
        "worker_id": worker_id,
        "error": _short(error),
        "log_tail": log_tail,
    }


def _short(error: BrineryError) -> dict[str, Any]:
    context = {
        name: value[-MAX_TEXT:] if isinstance(value, str) else value
        for name, value in error.context.items()
        if isinstance(value, str) or len(orjson.dumps(value)) <= MAX_TEXT
    }
    return {"type": error.wire_type(), "message": error.message[:MAX_TEXT], "context": context}
