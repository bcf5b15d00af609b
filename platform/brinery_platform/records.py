"""The task record: how `brinery.spec.Task` lies in its Redis hash, and the names of the objects that belong to it."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from brinery.spec import Task, TaskStatus

FIELDS: Final = tuple(field.name for field in dataclasses.fields(Task))
LISTED: Final = tuple(name for name in FIELDS if name not in {"input", "result", "webhook"})
"""What a listing shows of a task: all but its payloads and secrets."""

_READERS: Final[dict[str, Any]] = {
    **dict.fromkeys(("attempt", "max_attempts", "priority"), int),
    **dict.fromkeys(
        (
            "timeout_seconds",
            "result_ttl_seconds",
            "created_at",
            "expires_at",
            "not_before",
            "started_at",
            "finished_at",
            "queued_at",
            "sent_at",
            "answered_at",
            "stored_at",
            "priority_age_seconds",
        ),
        float,
    ),
    "status": lambda raw: TaskStatus(raw.decode()),
    "input": bytes,
    "result": bytes,
    "alone": lambda raw: raw == b"1",
    **dict.fromkeys(("error", "retry_for", "webhook", "webhook_state"), orjson.loads),
}


def task_key(task_id: str) -> str:
    """Return the key of a task's hash."""
    return f"task:{task_id}"


def events_key(task_id: str) -> str:
    """Return the key of a task's stream of events: ``status``, ``at``, ``attempt``, ``reason``."""
    return f"events:{task_id}"


def attempts_key(task_id: str) -> str:
    """Return the key of the list of a task's attempts that did not succeed, oldest first, JSON each."""
    return f"attempts:{task_id}"


def listing_key(owner: str, status: TaskStatus) -> str:
    """Return the key of the index of an owner's tasks in one status, by the sequence in which they came."""
    return f"tasks:{owner}:{status}"


def dead_key(endpoint_id: str) -> str:
    """Return the key of the index of an endpoint's dead letters, by the same sequence."""
    return f"dead:{endpoint_id}"


def input_object(task_id: str, sha256: str) -> str:
    """Return a fresh key for an input too large for the record; it is deleted with the task.

    Each submission has its own, so that one which is refused can delete its input although another of the same id was
    accepted at the same moment. The digest at its end tells whether two are equal.
    """
    return f"{input_prefix(task_id)}{secrets.token_hex(8)}.{sha256}"


def input_prefix(task_id: str) -> str:
    """Return what the keys of a task's inputs begin with; others are the user's."""
    return f"inputs/{task_id}."


def result_object(task_id: str, attempt: int) -> str:
    """Return the key of a result too large for the record.

    An attempt has a key of its own, so that one which was given up cannot overwrite the result of a later one.
    """
    return f"results/{task_id}.{attempt}"


def celery_object(task_id: str) -> str:
    """Return the key under which Celery's result backend keeps what ``AsyncResult(task_id)`` reads."""
    return f"results/{task_id}"


def to_fields(values: Mapping[str, Any]) -> list[str | bytes]:
    """Return ``name, value, …`` as the hash holds them; None, False and empty lists are left out."""
    fields: list[str | bytes] = []
    for name, value in values.items():
        if value is None or value is False or value == []:
            continue
        if value is True:
            fields += name, "1"
        elif isinstance(value, float):
            fields += name, f"{value:.6f}"
        elif isinstance(value, dict | list):
            fields += name, orjson.dumps(value)
        else:
            fields += name, value if isinstance(value, bytes) else str(value)
    return fields


def record_fields(task: Task) -> list[str | bytes]:
    """Return a new task's whole record.

    On top of `Task`'s fields: ``wait_seconds``, which a charged requeue may wait once more, and ``attempts_asked``,
    which a dead letter that is queued again gets once more.
    """
    values = {name: getattr(task, name) for name in FIELDS}
    waits = task.expires_at - task.created_at
    return to_fields({**values, "wait_seconds": waits, "attempts_asked": task.max_attempts})


def from_fields(raw: Mapping[bytes, bytes]) -> Task:
    """Rebuild a task from its hash; fields that only the scripts use are left out."""
    values: dict[str, Any] = {}
    for name in FIELDS:
        value = raw.get(name.encode())
        if value is not None:
            values[name] = _READERS.get(name, bytes.decode)(value)
    return Task(**values)


def from_pairs(raw: Sequence[bytes]) -> Task:
    """Rebuild a task from ``name, value, …`` as a script returns a hash."""
    return from_fields(dict(zip(raw[::2], raw[1::2], strict=True)))


def from_listed(raw: Sequence[bytes | None]) -> Task:
    """Rebuild a task from the values of `LISTED`."""
    pairs = zip(LISTED, raw, strict=True)
    return from_fields({name.encode(): value for name, value in pairs if value is not None})
