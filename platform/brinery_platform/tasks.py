"""The tasks: `Tasks` runs the transitions blocking, `AsyncTasks` on asyncio; the record in Redis is the truth."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from brinery.errors import BrineryError, UnavailableError
from brinery.spec import EndpointSpec, Task, TaskStatus
from brinery_platform import transitions
from brinery_platform.records import celery_object, from_fields, input_prefix, result_object, task_key
from brinery_platform.transitions import (
    BATCH,
    Backlog,
    Call,
    CancelReason,
    Charge,
    Claim,
    Claimed,
    FinishReason,
    HoldReason,
    Outdated,
    RequeueDeadReason,
    RequeueReason,
    Submitted,
    script,
)

if TYPE_CHECKING:
    import redis
    import redis.asyncio

    from brinery_platform.objects import Objects

T = TypeVar("T")

DONE: Final = "done"
"""Channel that carries the id of each task that became final."""
CHANGES: Final = "changes"
"""Channel that carries the id of a task at each of its events."""
CANCEL: Final = "cancel"
"""Channel that carries the id of each running task that is to stop."""
MAX_QUEUED: Final = EndpointSpec.max_queued
ENDPOINTS_AT_ONCE: Final = 10
AWAY: Final = (
    AuthenticationError,
    BusyLoadingError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisConnectionError,
    RedisTimeoutError,
)
REFUSALS: Final = frozenset(
    {"BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY", "TRYAGAIN"}
)
"""Codes of errors by which a Redis says that it cannot do something now; the same call may succeed later."""
MAX_BATCHES: Final = 10
"""Batches of one kind that one sweep handles; the next sweep goes on."""


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """What one sweep did; every message in it has been published already.

    Args:
        requeued: Tasks whose forwarder died.
        due: Tasks whose back-off is over.
        expired: Tasks that waited too long.
        republished: Tasks whose message was lost.
        risen: Tasks that waited so long that they were moved up by one priority.
        forgotten: Tasks whose result was kept long enough.
    """

    requeued: int
    due: int
    expired: int
    republished: int
    risen: int
    forgotten: int


class Tasks:
    """All that forwarder and controller do with tasks.

    Every method raises `UnavailableError` while Redis does not answer; each may then simply be called again.

    Args:
        redis: A client whose replies are bytes.
    """

    def __init__(self, redis: redis.Redis) -> None:
        self._redis = redis
        transitions.load_scripts()

    def _run(self, call: Call[T]) -> T:
        with redis_errors():
            try:
                reply = self._redis.evalsha(script(call.name).sha, 0, *call.arguments)
            except NoScriptError:
                reply = self._redis.eval(script(call.name).text, 0, *call.arguments)
        return call.parse(reply)

    def submit(self, task: Task, *, max_queued: int = MAX_QUEUED) -> Submitted:
        """Accept a task; see `AsyncTasks.submit`."""
        return self._run(transitions.submit(task, max_queued))

    def get(self, task_id: str) -> Task | None:
        """Return a task as it stands, or None."""
        with redis_errors():
            raw = cast("dict[bytes, bytes]", self._redis.hgetall(task_key(task_id)))
        return from_fields(raw) if raw else None

    def cancel(self, task_id: str) -> CancelReason:
        """Cancel a task; see `AsyncTasks.cancel`."""
        return self._run(transitions.cancel(task_id))

    def requeue_dead(self, task_id: str) -> RequeueDeadReason:
        """Start a failed task again; see `AsyncTasks.requeue_dead`."""
        return self._run(transitions.requeue_dead(task_id))

    # -------------------------------------------------------------------------------------------- for forwarders
    def register(self, incarnation: str) -> None:
        """Make an incarnation known; before it consumes anything."""
        self._run(transitions.register(incarnation))

    def renew(self, incarnation: str) -> bool:
        """Renew an incarnation's lease; False means that it was declared dead and needs a new id."""
        return self._run(transitions.renew(incarnation))

    def claim(self, task_id: str, incarnation: str, token: str) -> Claimed:
        """Begin an attempt.

        Args:
            task_id: From the message.
            incarnation: Who will run it.
            token: From `transitions.new_token`, one for each delivery; a repeated call passes the same.
        """
        return self._run(transitions.claim(task_id, incarnation, token))

    def hold(self, task_id: str, incarnation: str) -> HoldReason:
        """Note that an incarnation has the message and waits for a worker; the task stays queued."""
        return self._run(transitions.hold(task_id, incarnation))

    def release(self, task_id: str, incarnation: str) -> None:
        """Give a held task's message back to the head of its queue."""
        self._run(transitions.release(task_id, incarnation))

    def finish(
        self,
        claim: Claim,
        status: TaskStatus,
        *,
        reason: str,
        dead: bool = False,
        report: dict[str, Any] | None = None,
        **values: Any,
    ) -> FinishReason:
        """End an attempt and its task; an attempt that is no longer the running one changes nothing.

        Args:
            claim: The attempt.
            status: A final one.
            reason: For the task's events.
            dead: Whether it becomes a dead letter.
            report: What is kept of an attempt that did not succeed.
            values: Fields of `Task`: ``result_type`` and ``result`` or ``result_object``, or ``error``. What they
                name is stored already.
        """
        call = transitions.finish(claim, status, reason=reason, dead=dead, report=report, values=values)
        return self._run(call)

    def requeue(
        self,
        claim: Claim,
        *,
        reason: str,
        charge: Charge,
        error: BrineryError,
        delay_seconds: float | None = None,
        report: dict[str, Any] | None = None,
        alone: bool = False,
    ) -> RequeueReason:
        """End an attempt and queue its task again; the last one that counts in full fails it.

        Args:
            claim: The attempt.
            reason: For the task's events.
            charge: How it counts.
            error: What the task fails with if it was the last one.
            delay_seconds: From now, ≥ 0; None backs off: 1 s, doubled with each attempt, at most 300 s, with jitter.
            report: What is kept of the attempt.
            alone: Whether the next attempt is to have a worker for itself.
        """
        return self._run(
            transitions.requeue(
                claim,
                reason=reason,
                charge=charge,
                delay_seconds=delay_seconds,
                error=error.to_json()["error"],
                report=report,
                alone=alone,
            )
        )

    def cancel_requested(self, task_ids: list[str]) -> list[str]:
        """Return those of `task_ids` that somebody asked to cancel while they run."""
        with redis_errors(), self._redis.pipeline(transaction=False) as pipe:
            for task_id in task_ids:
                pipe.hexists(task_key(task_id), "cancel_requested")
            flags = pipe.execute()
        return [task_id for task_id, flag in zip(task_ids, flags, strict=True) if flag]

    # ----------------------------------------------------------------------------------------- for the controller
    def backlogs(self) -> dict[str, Backlog]:
        """Count the tasks of every endpoint that has open ones, in three round trips however many there are."""
        endpoint_ids = self._busy_endpoints()
        calls = [transitions.backlog(endpoint_id) for endpoint_id in endpoint_ids]
        first = [self._run(call) for call in calls[:1]]  # which also lets Redis know the script
        with redis_errors(), self._redis.pipeline(transaction=False) as pipe:
            for call in calls[1:]:
                pipe.evalsha(script(call.name).sha, 0, *call.arguments)
            rest = [call.parse(reply) for call, reply in zip(calls[1:], pipe.execute(), strict=True)]
        return dict(zip(endpoint_ids, [*first, *rest], strict=True))

    def _busy_endpoints(self) -> list[str]:
        with redis_errors():
            return sorted(raw.decode() for raw in cast("set[bytes]", self._redis.smembers("endpoints")))

    def forwarders(self) -> list[tuple[str, str]]:
        """Return the ``fwd_…`` and the host of every forwarder that is registered, alive or not."""
        with redis_errors():
            known = cast("set[bytes]", self._redis.smembers("incarnations"))
        parts = [raw.decode().split(":") for raw in known]
        return [(running_id, host) for running_id, host, *_ in parts]

    def incarnation_died(self, running_id: str) -> int:
        """Requeue at once what a forwarder ran whose process is known to be gone.

        Args:
            running_id: Its ``fwd_…``. Call this before a successor of the same id is started.

        Returns:
            How many tasks were requeued.
        """
        with redis_errors():
            known = cast("set[bytes]", self._redis.smembers("incarnations"))
        mine = [raw.decode() for raw in known if raw.decode().startswith(f"{running_id}:")]
        requeued = 0
        for incarnation in mine:
            while batch := self._run(transitions.bury(incarnation)):
                requeued += batch
        return requeued

    def forget_endpoint(self, endpoint_id: str) -> int:
        """Cancel an endpoint's open tasks, because it is being deleted.

        Returns:
            How many still run; their holders were told. Call again until it is 0, or stop the forwarder first.
        """
        while True:
            cancelled, left = self._run(transitions.forget_endpoint(endpoint_id))
            if not cancelled or not left:
                return left

    def sweep(self, objects: Objects) -> SweepReport:
        """Repair what deaths and losses left, in bounded batches; once a second, by the leader only.

        Args:
            objects: Where outdated inputs and results are deleted.
        """
        requeued = self._batches(transitions.sweep_incarnations())
        due = expired = 0
        for _ in range(MAX_BATCHES):
            batch_due, batch_expired = self._run(transitions.sweep_times())
            due, expired = due + batch_due, expired + batch_expired
            if max(batch_due, batch_expired) < BATCH:
                break
        endpoints = self._busy_endpoints()
        republished = risen = 0
        for start in range(0, len(endpoints), ENDPOINTS_AT_ONCE):
            some = endpoints[start : start + ENDPOINTS_AT_ONCE]
            republished += self._batches(transitions.sweep_lost(some))
            risen += self._batches(transitions.sweep_age(some))
        return SweepReport(
            requeued=requeued,
            due=due,
            expired=expired,
            republished=republished,
            risen=risen,
            forgotten=self._forget_outdated(objects),
        )

    def _batches(self, call: Call[int]) -> int:
        total = 0
        for _ in range(MAX_BATCHES):
            handled = self._run(call)
            total += handled
            if handled < BATCH:
                break
        return total

    def _forget_outdated(self, objects: Objects) -> int:
        """Delete objects first and records after, so that a death in between leaves nothing that nobody finds."""
        outdated = self._run(transitions.outdated())
        if not outdated:
            return 0
        for each in outdated:
            for key in _objects_of(each):
                objects.delete(key)
        return self._run(transitions.forget(each.task_id for each in outdated))


@contextlib.contextmanager
def redis_errors() -> Iterator[None]:
    """Turn what a Redis client raises for a server that is away into `UnavailableError`."""
    try:
        yield
    except AWAY as error:
        raise UnavailableError(
            f"Redis did not answer ({type(error).__name__}); try again shortly. If it lasts, see its log."
        ) from error
    except ResponseError as error:
        code = str(error).partition(" ")[0]
        if code not in REFUSALS:
            raise
        raise UnavailableError(f"Redis takes no writes now ({code}); see its log and settings.") from error


def _objects_of(each: Outdated) -> Iterator[str]:
    yield celery_object(each.task_id)
    for attempt in range(1, each.attempt + 1):  # also of those that were given up after they had stored one
        yield result_object(each.task_id, attempt)
    if each.input_object.startswith(input_prefix(each.task_id)):  # what the user uploaded is the user's to delete
        yield each.input_object
