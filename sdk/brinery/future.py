"""A task's result, now or later, here or in another process: all that a `Future` needs is the task's id."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from brinery.checks import check_task_id
from brinery.default import chosen_client
from brinery.errors import (
    BrineryError,
    TaskCancelledError,
    TaskExpiredError,
    UnavailableError,
    UpstreamTimeoutError,
    error_from_json,
)
from brinery.payload import decode
from brinery.spec import MAX_WAIT_SECONDS, TaskStatus
from brinery.waits import WAIT_PATIENCE_SECONDS, deadline, shared_waits

if TYPE_CHECKING:
    from brinery.client import Client
    from brinery.routes import Request
    from brinery.transport import Response

SUBMIT_PATIENCE_SECONDS: Final = 10.0
"""How long a submission, or one look at a task, is repeated while the gateway is away."""

EARLY_PAUSE_SECONDS: Final = 0.1


class Future:
    """The result-to-be of one task.

    Args:
        task_id: ``tsk_…``.
        client: None for the one that the environment and the profile name.
        pickled: Whether a pickled result may be opened; that runs code of whoever made it.

    Raises:
        InvalidRequestError: `task_id` is no task's id.

    ``final_record`` is the task's record once it is known here to be final; until then None.
    """

    def __init__(self, task_id: str, *, client: Client | None = None, pickled: bool = False) -> None:
        self.id = check_task_id(task_id)
        self.client = chosen_client(client, task_id)
        self.final_record: dict[str, Any] | None = None
        self._pickled = pickled

    @classmethod
    def from_id(cls, task_id: str, *, client: Client | None = None, pickled: bool = False) -> Future:
        """Return the future of a task that any process submitted; see the class for the arguments."""
        return cls(task_id, client=client, pickled=pickled)

    def __repr__(self) -> str:
        return f"<Future {self.id}>"

    # ---------------------------------------------------------------------------------------------- waiting
    def get(self, timeout: float | None = None) -> Any:
        """Wait for the task and return its result; a gateway that restarts meanwhile does no harm.

        Args:
            timeout: Seconds to wait at most; None waits until the task is final.

        Returns:
            What the function returned: as JSON carries it, or the object itself if the call was ``pickled``.

        Raises:
            TimeoutError: The task is not final yet; it goes on, and `get` can be called again.
            RemoteError: The function raised; carries type, message and traceback.
            TaskCancelledError: The task was cancelled.
            TaskExpiredError: No worker took it in time.
            UnavailableError: The gateway has been away for ten minutes.
            TypeError: `timeout` is no number.
        """
        wait = _Wait(self.id, timeout)
        with wait.bounded():
            while (record := self.final_record) is None:
                if pause_seconds := wait.pause_seconds():
                    time.sleep(pause_seconds)
                self.note(self.client.send_patiently(wait.poll, wait.patience_seconds()).json())
            reply = None
            if not _inline(record):
                reply = self.client.send_patiently(self._result_request, wait.patience_seconds())
        return _outcome(record, reply, pickled=self._pickled)

    async def aget(self, timeout: float | None = None) -> Any:
        """Do what `get` does, on the running event loop; ``await future`` is ``await future.aget()``.

        Thousands of futures may be awaited at once: they share a few connections.
        """
        wait = _Wait(self.id, timeout)
        with wait.bounded():
            while (record := self.final_record) is None:
                await asyncio.sleep(wait.pause_seconds())
                seen = await shared_waits(self.client).look(
                    self.id, wait.poll, seconds=wait.remaining_seconds(), patience_seconds=wait.patience_seconds()
                )
                if seen is not None:
                    self.note(seen)
            reply = None
            if not _inline(record):
                reply = await self.client.asend_patiently(self._result_request, wait.patience_seconds())
        return _outcome(record, reply, pickled=self._pickled)

    def __await__(self) -> Generator[Any, None, Any]:
        return self.aget().__await__()

    def exception(self, timeout: float | None = None) -> BrineryError | None:
        """Wait as `get` does and return the error that it would raise; None after a success.

        Raises:
            TimeoutError: The task is not final yet.
        """
        try:
            self.get(timeout)
        except BrineryError as error:
            if self.final_record is None:
                raise
            return error
        return None

    # --------------------------------------------------------------------------------------------- looking
    @property
    def status(self) -> TaskStatus:
        """Where the task is now; asks the platform until it is final."""
        return TaskStatus(self.record()["status"])

    def done(self) -> bool:
        """Whether the task is final: succeeded, failed, cancelled or expired."""
        return self.status.final

    def record(self) -> dict[str, Any]:
        """Return the task's record as it stands: ``{"id", "status", "attempt", "created_at", "error", …}``."""
        if self.final_record is not None:
            return self.final_record
        record = self.client.send_patiently(self._task_request, SUBMIT_PATIENCE_SECONDS).json()
        self.note(record)
        return dict(record)

    def cancel(self) -> bool:
        """Cancel the task, queued or running.

        Returns:
            Whether it is cancelled now; False when it was final before, or is still being stopped.
        """
        record = self.client.cancel(self.id)
        self.note(record)
        return TaskStatus(record["status"]) is TaskStatus.CANCELLED

    async def acancel(self) -> bool:
        """Do what `cancel` does, on the running event loop."""
        record = await self.client.acancel(self.id)
        self.note(record)
        return TaskStatus(record["status"]) is TaskStatus.CANCELLED

    def _task_request(self) -> Request:
        from brinery.routes import task_request

        return task_request(self.id)

    def _result_request(self) -> Request:
        from brinery.routes import result_request

        return result_request(self.id)

    def note(self, record: dict[str, Any]) -> None:
        """Take in the task's record, however it came; a final one answers everything that is asked from then on."""
        if TaskStatus(record["status"]).final:
            self.final_record = record


class _Wait:
    """One wait for a task: how long it may still last, and the `TimeoutError` that ends it."""

    def __init__(self, task_id: str, timeout: float | None) -> None:
        self._task_id = task_id
        self._until = deadline(timeout)
        self._text = f"{task_id} is not finished after {timeout} s; it goes on, and can be waited for again"
        self._last_look: float | None = None
        self._ends_with_deadline = False

    def remaining_seconds(self) -> float:
        """Return how long it may still last."""
        return max(0.0, self._until - time.monotonic())

    def patience_seconds(self) -> float:
        """Return for how long the platform may be away."""
        remaining_seconds = self.remaining_seconds()
        self._ends_with_deadline = remaining_seconds <= WAIT_PATIENCE_SECONDS
        return min(remaining_seconds, WAIT_PATIENCE_SECONDS)

    def poll(self) -> Request:
        """Return the long-poll that is sent next."""
        from brinery.routes import task_request

        return task_request(self._task_id, wait_seconds=min(self.remaining_seconds(), MAX_WAIT_SECONDS))

    def pause_seconds(self) -> float:
        """Return how long to wait before the next look: a gateway that is about to stop answers long-polls at once.

        Raises:
            TimeoutError: The time is over, and the platform was asked at least once.
        """
        now, last = time.monotonic(), self._last_look
        self._last_look = now
        if last is None:
            return 0.0
        if now >= self._until:
            raise TimeoutError(f"{self._text}.")
        return EARLY_PAUSE_SECONDS if now - last < EARLY_PAUSE_SECONDS else 0.0

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """Turn the platform's absence into a `TimeoutError` where it was the deadline that ended the patience."""
        try:
            yield
        except (UnavailableError, UpstreamTimeoutError) as error:
            if not self._ends_with_deadline:
                raise
            raise TimeoutError(f"{self._text} ({error}).") from error


def _inline(record: dict[str, Any]) -> bool:
    return record["status"] != TaskStatus.SUCCEEDED or bool(record.get("result_inline"))


def _outcome(record: dict[str, Any], reply: Response | None, *, pickled: bool) -> Any:
    """Return a final record's result, from `reply` where it is not inline, or raise the record's error."""
    task_id = record["id"]
    match TaskStatus(record["status"]):
        case TaskStatus.SUCCEEDED:
            if reply is None:
                return record["result"]
            return decode(reply.content, record.get("result_type"), pickled=pickled)
        case TaskStatus.CANCELLED:
            why = (record.get("error") or {}).get("message")
            raise TaskCancelledError(f"{task_id}: {why}" if why else f"{task_id} was cancelled.", task_id=task_id)
        case TaskStatus.EXPIRED:
            raise TaskExpiredError(
                f"{task_id} expired before a worker could take it; raise max_workers or expires_in_seconds.",
                task_id=task_id,
            )
        case _:
            raise error_from_json({"error": record.get("error")})
