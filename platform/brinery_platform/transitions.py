"""Every change of a task as a value: which script, its arguments, and what its reply means.

`brinery_platform.tasks` runs them, blocking or on asyncio. Each script is atomic and returns the reason for what it
did; its first comment says what it takes. The server's clock decides, so the machines' clocks need not agree.
"""

from __future__ import annotations

import functools
import hashlib
import random
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeVar

import orjson

from brinery.errors import (
    ConflictError,
    InvalidRequestError,
    OverloadedError,
    TaskCancelledError,
    TaskExpiredError,
    WorkerError,
)
from brinery.spec import LEASE_SECONDS, Task, TaskStatus
from brinery_platform.broker import message_template
from brinery_platform.records import FIELDS, LISTED, from_fields, from_listed, from_pairs, record_fields, to_fields

T = TypeVar("T")

BATCH: Final = 100
"""Records that one script touches at most, so that Redis is never away for long (about 5 ms)."""
LIST_SCAN: Final = 2_000
LOST_AFTER_SECONDS: Final = 2.0
_LUA: Final = Path(__file__).parent / "lua"
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LOST: Final = WorkerError("The process that ran this attempt died; no attempt is left. Requeue the task to try again.")
_EXPIRED: Final = TaskExpiredError("No worker took the task before it expired; submit it again, or allow more time.")
_DELETED: Final = TaskCancelledError("The task was cancelled because its endpoint was deleted.")


@dataclass(frozen=True, kw_only=True)
class Script:
    """A Lua script as Redis knows it."""

    text: str
    sha: str


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """One call of a script.

    Args:
        name: Of the script.
        arguments: Its ``ARGV``.
        parse: Makes the result from the reply, or raises what the reply means.
    """

    name: str
    arguments: tuple[str | bytes | int | float, ...]
    parse: Callable[[Any], T]


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """The task that a submission led to: a new one, or the one that its id or idempotency key named already."""

    task: Task
    created: bool


ClaimReason = Literal["claimed", "unregistered", "gone", "final", "running", "delayed"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """An attempt that is ours: what `finish` and `requeue` compare before they change anything."""

    task: Task
    token: str

    @property
    def request_id(self) -> str:
        """What the worker calls this attempt."""
        return f"{self.task.id}.{self.task.attempt}"


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """The answer to a claim: the attempt, or the reason why the message is to be dropped."""

    reason: ClaimReason
    claim: Claim | None = None


@dataclass(frozen=True, kw_only=True)
class Page:
    """A part of a listing, newest first, without inputs and results; `cursor` None means that nothing follows."""

    tasks: list[Task]
    cursor: str | None


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """How an endpoint's tasks stand.

    Args:
        open: Tasks that are not final.
        queued: Tasks that wait for a worker; those in a back-off are not counted.
        oldest_queued_at: Since when the longest waiting of these waits, seconds since the epoch.
    """

    open: int
    queued: int
    oldest_queued_at: float | None


@dataclass(frozen=True, kw_only=True)
class Outdated:
    """A task whose result has been kept long enough, how often it was tried, and the key of a large input or ``""``."""

    task_id: str
    attempt: int
    input_object: str


@dataclass(frozen=True, kw_only=True)
class WebhooksTaken:
    """Webhooks to be sent now, and how long they are nobody else's.

    Args:
        tasks: Final ones, without their inputs.
        lease: What `webhook_report` compares.
        at: The server's time, seconds since the epoch.
        next_in_seconds: When to ask again; None while nothing is left.
    """

    tasks: list[Task]
    lease: str
    at: float
    next_in_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class WebhookReported:
    """What became of a report: ``stale`` if the lease was over or the record gone; and when to ask again."""

    reason: Literal["kept", "done", "stale"]
    next_in_seconds: float | None


HoldReason = Literal["held", "gone", "final", "delayed", "duplicate"]
Charge = Literal["full", "none", "spared"]
"""How an attempt that is given up counts: ``full``; ``none``, it never began and is taken back; ``spared``, it had
begun, so that it stays counted, but was not at fault, so that the task may have one more."""
FinishReason = Literal["finished", "stale", "gone"]
RequeueReason = Literal["queued", "failed", "cancelled", "stale", "gone"]
CancelReason = Literal["cancelled", "requested", "final", "gone"]
RequeueDeadReason = Literal["queued", "not_failed", "gone"]
DropReason = Literal["dropped", "not_final", "gone"]


@functools.cache
def script(name: str) -> Script:
    """Return a script with the prelude in front of it."""
    prelude = (_LUA / "prelude.lua").read_text()
    for mark, text in (
        ("%TEMPLATE%", message_template()),
        ("%LOST%", orjson.dumps(_LOST.to_json()["error"]).decode()),
        ("%EXPIRED%", orjson.dumps(_EXPIRED.to_json()["error"]).decode()),
    ):
        prelude = prelude.replace(mark, text)
    text = prelude + (_LUA / f"{name}.lua").read_text()
    return Script(text=text, sha=hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def load_scripts() -> None:
    """Read every script now, so that the first call of a process does not pay for it."""
    for path in _LUA.glob("*.lua"):
        if path.stem != "prelude":
            script(path.stem)


def _text(reply: Any) -> Any:
    return reply.decode()


def submit(task: Task, max_queued: int) -> Call[Submitted]:
    """Write the record and publish its id, or find the task that is there already."""
    for value in (task.id, task.endpoint_id):
        if not _ID.fullmatch(value):
            raise InvalidRequestError(f"{value!r} is no valid id: use up to 64 letters, digits, '_' and '-'.")

    def parse(reply: list[Any]) -> Submitted:
        if reply[0] == b"created":
            created_at, expires_at = float(reply[1]), float(reply[2])
            accepted = replace(task, created_at=created_at, queued_at=created_at, expires_at=expires_at)
            return Submitted(task=accepted, created=True)
        if reply[0] == b"full":
            raise OverloadedError(
                f"{reply[1]} tasks of this endpoint are open already; try again when some have finished.",
                endpoint_id=task.endpoint_id,
                retry_after_seconds=1,
            )
        found = from_pairs(reply[1])
        if (found.owner, found.endpoint_id) != (task.owner, task.endpoint_id):
            raise ConflictError(f"The task id {task.id} is taken; choose another one.", task_id=task.id)
        return Submitted(task=found, created=False)

    return Call(
        name="submit",
        arguments=(
            task.id,
            task.endpoint_id,
            task.owner,
            task.priority,
            task.idempotency_key or "",
            max_queued,
            f"{task.expires_at - task.created_at:.6f}",
            *record_fields(task),
        ),
        parse=parse,
    )


def claim(task_id: str, incarnation: str, token: str) -> Call[Claimed]:
    """Begin an attempt: ``queued → running``, attempt + 1."""

    def parse(reply: list[Any]) -> Claimed:
        if reply[0] == b"claimed":
            return Claimed(reason="claimed", claim=Claim(task=from_pairs(reply[1]), token=token))
        return Claimed(reason=_text(reply[0]))

    return Call(name="claim", arguments=(task_id, incarnation, token), parse=parse)


def new_token() -> str:
    """Return what tells one delivery's claim from all others."""
    return secrets.token_hex(8)


def hold(task_id: str, incarnation: str) -> Call[HoldReason]:
    """Note that a forwarder has the message and waits for a worker."""
    return Call(name="hold", arguments=(task_id, incarnation), parse=_text)


def release(task_id: str, incarnation: str) -> Call[str]:
    """Give a held task's message back to the head of its queue."""
    return Call(name="release", arguments=(task_id, incarnation), parse=_text)


def finish(
    held: Claim,
    status: TaskStatus,
    *,
    reason: str,
    dead: bool,
    report: dict[str, Any] | None,
    values: dict[str, Any],
) -> Call[FinishReason]:
    """End an attempt and its task, if the attempt is still the one that runs."""
    how = (status, reason, "1" if dead else "0", _report(report))
    return Call(name="finish", arguments=(*_attempt(held), *how, *to_fields(values)), parse=_text)


def requeue(
    held: Claim,
    *,
    reason: str,
    charge: Charge,
    delay_seconds: float | None,
    error: dict[str, Any],
    report: dict[str, Any] | None,
    alone: bool,
) -> Call[RequeueReason]:
    """End an attempt and queue its task again, or fail it when it was the last one."""
    delay = "" if delay_seconds is None else f"{delay_seconds:.6f}"
    how = (charge, delay, _jitter(), reason, orjson.dumps(error), _report(report), "1" if alone else "0")
    return Call(name="requeue", arguments=(*_attempt(held), *how), parse=_text)


def _attempt(held: Claim) -> tuple[str, int, str, str]:
    """Return what must still stand in the record for the attempt to be ended by us."""
    return held.task.id, held.task.attempt, str(held.task.incarnation), held.token


def _report(report: dict[str, Any] | None) -> bytes:
    return b"" if report is None else orjson.dumps(report)


def cancel(task_id: str) -> Call[CancelReason]:
    """Cancel at once what is queued; ask the holder of what runs."""
    return Call(name="cancel", arguments=(task_id,), parse=_text)


def requeue_dead(task_id: str) -> Call[RequeueDeadReason]:
    """Start a failed task again with all its attempts."""
    return Call(name="requeue_dead", arguments=(task_id,), parse=_text)


def drop(task_id: str) -> Call[DropReason]:
    """Let the next sweep delete a final task."""
    return Call(name="drop", arguments=(task_id,), parse=_text)


def listing(indexes: Sequence[str], endpoint_id: str | None, cursor: str | None, limit: int) -> Call[Page]:
    """Read a part of the tasks in some indexes (see `records`), merged."""
    if cursor is not None and not (cursor.isascii() and cursor.isdigit()):
        raise InvalidRequestError("This cursor is not one that a listing returned; begin without one.")

    def parse(reply: list[Any]) -> Page:
        return Page(tasks=[from_listed(raw) for raw in reply[1:]], cursor=_text(reply[0]) or None)

    return Call(
        name="list",
        arguments=(endpoint_id or "", cursor or "+inf", limit, LIST_SCAN, len(indexes), *indexes, *LISTED),
        parse=parse,
    )


def backlog(endpoint_id: str) -> Call[Backlog]:
    """Count an endpoint's tasks."""
    return Call(name="backlog", arguments=(endpoint_id,), parse=to_backlog)


def to_backlog(reply: list[Any]) -> Backlog:
    """Return the standing that a script told in its first three fields."""
    return Backlog(open=reply[0], queued=reply[1], oldest_queued_at=float(reply[2]) if reply[2] else None)


def forget_endpoint(endpoint_id: str) -> Call[tuple[int, int]]:
    """Cancel a batch of an endpoint's open tasks: how many were, how many are left."""
    why = orjson.dumps(_DELETED.to_json()["error"])
    return Call(name="forget_endpoint", arguments=(endpoint_id, BATCH, why), parse=lambda reply: (reply[0], reply[1]))


def register(incarnation: str) -> Call[str]:
    """Make an incarnation known, with a lease."""
    return Call(name="register", arguments=(incarnation, int(LEASE_SECONDS * 1000)), parse=_text)


def renew(incarnation: str) -> Call[bool]:
    """Renew a lease; False when the incarnation was declared dead."""
    return Call(
        name="renew",
        arguments=(incarnation, int(LEASE_SECONDS * 1000)),
        parse=lambda reply: bool(reply == b"renewed"),
    )


def bury(incarnation: str) -> Call[int]:
    """Requeue a batch of what an incarnation ran that is known to be dead."""
    return Call(name="bury", arguments=(incarnation, BATCH, _jitter()), parse=int)


def sweep_incarnations() -> Call[int]:
    """Requeue a batch of what incarnations without a lease ran."""
    return Call(name="sweep_incarnations", arguments=(LEASE_SECONDS, BATCH, _jitter()), parse=int)


def sweep_times() -> Call[tuple[int, int]]:
    """Publish a batch of due tasks and expire a batch of late ones: how many of each."""
    return Call(name="sweep_times", arguments=(BATCH,), parse=lambda reply: (reply[0], reply[1]))


def sweep_lost(endpoint_ids: Iterable[str]) -> Call[int]:
    """Publish a batch of lost messages of these endpoints again."""
    return Call(name="sweep_lost", arguments=(BATCH, LOST_AFTER_SECONDS, *endpoint_ids), parse=int)


def sweep_age(endpoint_ids: Iterable[str]) -> Call[int]:
    """Move a batch of what has waited for too long up by one priority."""
    return Call(name="sweep_age", arguments=(BATCH, *endpoint_ids), parse=int)


def outdated() -> Call[list[Outdated]]:
    """Find a batch of tasks whose result has been kept long enough."""

    def parse(reply: list[bytes]) -> list[Outdated]:
        texts = [raw.decode() for raw in reply]
        triples = zip(texts[::3], texts[1::3], texts[2::3], strict=True)
        return [Outdated(task_id=a, attempt=int(b), input_object=c) for a, b, c in triples]

    return Call(name="outdated", arguments=(BATCH,), parse=parse)


def forget(task_ids: Iterable[str]) -> Call[int]:
    """Delete the records of outdated tasks."""
    return Call(name="forget", arguments=tuple(task_ids), parse=int)


def webhooks_take(lease_seconds: float, batch: int) -> Call[WebhooksTaken]:
    """Take webhooks whose time has come."""
    names = [name for name in FIELDS if name != "input"]
    encoded = [name.encode() for name in names]

    def parse(reply: list[Any]) -> WebhooksTaken:
        at, lease, next_at, *rows = reply
        pairs = [zip(encoded, row, strict=True) for row in rows]
        return WebhooksTaken(
            tasks=[from_fields({name: value for name, value in row if value is not None}) for row in pairs],
            lease=_text(lease),
            at=float(at),
            next_in_seconds=_seconds_left(next_at, at),
        )

    return Call(name="webhooks_take", arguments=(lease_seconds, batch, *names), parse=parse)


def webhook_report(
    task_id: str, lease: str, state: dict[str, Any] | None, next_at: float | None
) -> Call[WebhookReported]:
    """Note how a try ended, None for one that was put off, and when the next one is, None for the last."""

    def parse(reply: list[Any]) -> WebhookReported:
        return WebhookReported(reason=_text(reply[0]), next_in_seconds=_seconds_left(reply[1], reply[2]))

    said = "" if state is None else orjson.dumps(state)
    due = "" if next_at is None else f"{next_at:.6f}"
    return Call(name="webhook_report", arguments=(task_id, lease, said, due), parse=parse)


def _seconds_left(until: bytes, at: bytes) -> float | None:
    return max(float(until) - float(at), 0.0) if until else None


def _jitter() -> float:
    return 0.5 + random.random() / 2  # noqa: S311 - spreads retries, protects nothing
