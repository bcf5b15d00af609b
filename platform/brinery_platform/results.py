"""Celery's result backend over the object store, so that ``AsyncResult(task_id).get()`` works with plain Celery."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, cast

import orjson
import redis
from celery import Celery, states
from celery.backends.base import KeyValueStoreBackend

from brinery.errors import (
    BrineryError,
    NotFoundError,
    TaskCancelledError,
    TaskExpiredError,
    UnavailableError,
    error_from_json,
)
from brinery.spec import CONTENT_JSON, TaskStatus
from brinery_platform.objects import open_objects
from brinery_platform.records import celery_object, task_key

TIMEOUT_SECONDS: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What of a task's record a result is made of."""

    status: TaskStatus
    finished_at: float
    error: dict[str, Any] | None
    result_type: str
    result: bytes | None
    result_object: str | None


class ObjectsBackend(KeyValueStoreBackend):  # type: ignore[misc]  # Celery ships no types
    """Keeps what Celery notes of a task under ``results/<task id>``.

    It goes on trying until the store answers: with Celery's defaults, one failed write would turn a success into an
    acknowledged failure.

    Args:
        app: Its ``result_backend_transport_options`` name the store as ``objects_url``, and as ``records_url`` the
            Redis with the task records, which tell of tasks that ended without Celery: cancelled or expired in the
            queue, or given up by the sweep. Without the latter these stay ``PENDING``.
    """

    supports_autoexpire = True  # the sweep deletes a result together with its record

    def __init__(self, app: Celery, **options: Any) -> None:
        super().__init__(app, **options)
        self.objects = open_objects(app.conf.result_backend_transport_options["objects_url"])

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """Say that a store which is away will come back."""
        return isinstance(exc, (UnavailableError, redis.ConnectionError, redis.TimeoutError))

    def get(self, key: bytes | str) -> bytes | None:
        """Return what is stored, or None; of a task, what its record says where the two differ.

        They differ where a task ended without Celery, where an attempt that had been given up stored its end after
        the one that counts, and where a dead letter was queued again.
        """
        task_id = self._task_id(key)
        record = self._record(task_id) if task_id is not None else None
        if task_id is None or record is None:
            return self._stored(key)
        if record.status is TaskStatus.SUCCEEDED:
            stored = self._stored(key)
            done = stored is not None and self.decode(stored).get("status") == states.SUCCESS
            return stored if done else self._note(task_id, record, states.SUCCESS, _answer(record))
        if not record.status.final:
            return None
        state = states.FAILURE if record.status is TaskStatus.FAILED else states.REVOKED
        return self._note(task_id, record, state, self.prepare_exception(_why(task_id, record)))

    def _stored(self, key: bytes | str) -> bytes | None:
        try:
            return self.objects.get(self._object(key))
        except NotFoundError:
            return None

    def mget(self, keys: Iterable[bytes | str]) -> list[bytes | None]:
        """Return what is stored under each key, or None."""
        return [self.get(key) for key in keys]

    def set(self, key: bytes | str, value: bytes | str) -> None:
        """Store; durable when it returns."""
        self.objects.put(self._object(key), value.encode() if isinstance(value, str) else value)

    def delete(self, key: bytes | str) -> None:
        """Delete; already gone is no error."""
        self.objects.delete(self._object(key))

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **_more: Any
    ) -> Any:
        # Celery's own looks first whether a success is stored already, and keeps that one. Here the record decides
        # which attempt counts (see `get`), so the look would only cost a read.
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        meta["task_id"] = task_id
        self.set(self.get_key_for_task(task_id), self.encode(meta))
        return result

    def _note(self, task_id: str, record: _Record, state: str, result: Any) -> bytes:
        """Return what Celery would have noted of an end that it did not see."""
        meta = self._get_result_meta(result=result, state=state, traceback=None, request=None)
        meta["task_id"] = task_id
        meta["date_done"] = datetime.datetime.fromtimestamp(record.finished_at, datetime.UTC).isoformat()
        encoded = self.encode(meta)
        return encoded.encode() if isinstance(encoded, str) else bytes(encoded)

    def _record(self, task_id: str) -> _Record | None:
        """Return a task's record; None where there is none, or where it cannot be asked for."""
        if self._records is None:
            return None
        names = ("status", "finished_at", "error", "result_type", "result", "result_object")
        status, at, error, kind, result, key = cast(
            "list[bytes | None]", self._records.hmget(task_key(task_id), *names)
        )
        if status is None:
            return None
        return _Record(
            status=TaskStatus(status.decode()),
            finished_at=float(at or 0.0),
            error=orjson.loads(error) if error else None,
            result_type=(kind or b"").decode(),
            result=result,
            result_object=key.decode() if key else None,
        )

    @cached_property
    def _records(self) -> redis.Redis | None:
        url = self.app.conf.result_backend_transport_options.get("records_url")
        if url is None:
            return None
        return redis.Redis.from_url(url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS)

    def _task_id(self, key: bytes | str) -> str | None:
        text = key.decode() if isinstance(key, bytes) else key
        prefix = self.task_keyprefix.decode()
        return text.removeprefix(prefix) if text.startswith(prefix) else None

    def _object(self, key: bytes | str) -> str:
        task_id = self._task_id(key)
        if task_id is not None:
            return celery_object(task_id)
        return f"celery/{key.decode() if isinstance(key, bytes) else key}"


def _answer(record: _Record) -> Any:
    """Return what ``AsyncResult.get`` does: the JSON result, or a reference to what is no JSON or is large."""
    reference = {"type": record.result_type}
    if record.result is None:
        return reference | {"object": record.result_object}
    try:
        return orjson.loads(record.result) if record.result_type.startswith(CONTENT_JSON) else reference
    except orjson.JSONDecodeError:
        return reference


def _why(task_id: str, record: _Record) -> BrineryError:
    """Return what ``AsyncResult.get`` raises for a task that has not succeeded."""
    if record.status is TaskStatus.CANCELLED:
        return TaskCancelledError(task_id=task_id)
    if record.status is TaskStatus.EXPIRED:
        return TaskExpiredError(task_id=task_id)
    return error_from_json({"error": record.error} if record.error else None)
