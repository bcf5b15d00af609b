"""The tasks for the gateway: what `brinery_platform.tasks` does blocking, on asyncio and many calls at a time."""

from __future__ import annotations

import builtins
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from redis.exceptions import NoScriptError

from brinery.spec import Task, TaskStatus
from brinery_platform import task_figures, transitions
from brinery_platform.pipelines import Pipelines
from brinery_platform.records import attempts_key, dead_key, events_key, from_fields, listing_key, task_key
from brinery_platform.task_figures import Figures
from brinery_platform.tasks import MAX_QUEUED, redis_errors
from brinery_platform.transitions import (
    Call,
    CancelReason,
    DropReason,
    Page,
    RequeueDeadReason,
    Submitted,
    WebhookReported,
    WebhooksTaken,
    script,
)

if TYPE_CHECKING:
    import redis.asyncio

T = TypeVar("T")


class AsyncTasks:
    """All that the gateway does with tasks; raises as `Tasks` does.

    Args:
        redis: An asyncio client whose replies are bytes.
    """

    def __init__(self, redis: redis.asyncio.Redis) -> None:
        self._pipelines = Pipelines(redis)
        transitions.load_scripts()

    async def _run(self, call: Call[T]) -> T:
        with redis_errors():
            try:
                reply = await self._pipelines.command("EVALSHA", script(call.name).sha, 0, *call.arguments)
            except NoScriptError:
                reply = await self._pipelines.command("EVAL", script(call.name).text, 0, *call.arguments)
        return call.parse(reply)

    async def submit(self, task: Task, *, max_queued: int = MAX_QUEUED) -> Submitted:
        """Write a task's record and its message in one atomic step; accepted means that this returned.

        Args:
            task: A queued one, attempt 0; its input is in it, or stored already.
            max_queued: Tasks of the endpoint that may be open at once.

        Returns:
            The task, or the one that has its id, or its idempotency key with this owner and endpoint, already.

        Raises:
            OverloadedError: `max_queued` tasks are open.
            ConflictError: The id belongs to a task of another owner or endpoint.
            UnavailableError: Redis did not answer; submitting the same id again is safe.
        """
        return await self._run(transitions.submit(task, max_queued))

    async def figures(self, endpoint_id: str) -> Figures:
        """Count an endpoint's tasks; many at once share their way to Redis."""
        return await self._run(task_figures.figures(endpoint_id))

    async def get(self, task_id: str) -> Task | None:
        """Return a task as it stands, or None; whose it is, is the caller's to check."""
        with redis_errors():
            raw = await self._pipelines.command("HGETALL", task_key(task_id))
        return from_fields(raw) if raw else None

    async def standing(self, task_id: str) -> tuple[str, TaskStatus] | None:
        """Return a task's owner and status, or None; its payloads are not read."""
        with redis_errors():
            owner, status = await self._pipelines.command("HMGET", task_key(task_id), "owner", "status")
        return (owner.decode(), TaskStatus(status.decode())) if status else None

    async def events(self, task_id: str, after: str) -> builtins.list[tuple[str, dict[str, str]]]:
        """Return what is kept of a task's events after one of them, oldest first.

        Args:
            task_id: A task that need not exist.
            after: Id of an event, ``0-0`` for all.

        Returns:
            Id and fields of each: ``status``, ``at`` (seconds since the epoch), ``attempt``, ``reason``.
        """
        with redis_errors():
            raw = await self._pipelines.command("XRANGE", events_key(task_id), f"({after}", "+")
        return [
            (event_id.decode(), {name.decode(): value.decode() for name, value in fields.items()})
            for event_id, fields in raw
        ]

    async def cancel(self, task_id: str) -> CancelReason:
        """Cancel a task.

        Returns:
            ``cancelled``: it was queued and is final now. ``requested``: it runs, and its holder was told to stop it;
            channel `DONE` says when it has. ``final``: it was final before. ``gone``: there is none.
        """
        return await self._run(transitions.cancel(task_id))

    async def list(
        self,
        owner: str,
        endpoint_id: str | None = None,
        statuses: Collection[TaskStatus] = (),
        cursor: str | None = None,
        limit: int = 100,
    ) -> Page:
        """Read a part of an owner's tasks, newest first, without their inputs and results.

        Args:
            owner: Whose.
            endpoint_id: Only of this endpoint.
            statuses: Only in one of these; none of them means all.
            cursor: From the page before.
            limit: Tasks on a page at most, 1 to 1000. A filter may leave a page short, or empty, with more to come.
        """
        indexes = [listing_key(owner, each) for each in TaskStatus if not statuses or each in statuses]
        return await self._run(transitions.listing(indexes, endpoint_id, cursor, limit))

    async def list_dead(self, endpoint_ids: Iterable[str], cursor: str | None = None, limit: int = 100) -> Page:
        """Read a part of the dead letters of some endpoints, newest first; see `list`."""
        indexes = [dead_key(endpoint_id) for endpoint_id in endpoint_ids]
        return await self._run(transitions.listing(indexes, None, cursor, limit))

    async def attempts(self, task_id: str) -> builtins.list[dict[str, Any]]:
        """Return what is kept of a task's attempts that did not succeed, oldest first.

        Each has ``attempt``, ``charge``, ``started_at``, ``ended_at`` (seconds since the epoch), ``reason``,
        ``worker_id``, ``error`` (the inner error object) and ``log_tail``.
        """
        with redis_errors():
            raw = await self._pipelines.command("LRANGE", attempts_key(task_id), 0, -1)
        return [orjson.loads(each) for each in raw]

    async def drop(self, task_id: str) -> DropReason:
        """Let the next sweep delete a final task with its input and result."""
        return await self._run(transitions.drop(task_id))

    async def requeue_dead(self, task_id: str) -> RequeueDeadReason:
        """Start a failed task again with all its attempts.

        Returns:
            ``queued``, ``not_failed`` or ``gone``.
        """
        return await self._run(transitions.requeue_dead(task_id))

    async def webhooks_take(self, lease_seconds: float, batch: int) -> WebhooksTaken:
        """Take webhooks whose time has come.

        Args:
            lease_seconds: How long they are nobody else's; if this process dies, another one gets them after it.
            batch: How many at most.
        """
        return await self._run(transitions.webhooks_take(lease_seconds, batch))

    async def webhook_report(
        self, task_id: str, lease: str, state: dict[str, Any] | None, next_at: float | None
    ) -> WebhookReported:
        """Note how a try of a webhook ended.

        Args:
            task_id: Whose.
            lease: From `webhooks_take`.
            state: What the task shows from now on: ``status``, ``attempts``, ``last_status``, ``last_error``,
                ``next_at`` and ``delivered_at``; None leaves it as it is.
            next_at: Time of the next try by the server's clock; None for none.
        """
        return await self._run(transitions.webhook_report(task_id, lease, state, next_at))
