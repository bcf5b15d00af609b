"""Celery's result backend over the object store, so that ``AsyncResult(task_id).get()`` works with plain Celery."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celery import Celery
from celery.backends.base import KeyValueStoreBackend

from brinery.errors import NotFoundError, UnavailableError
from brinery_platform.objects import open_objects
from brinery_platform.records import celery_object


class ObjectsBackend(KeyValueStoreBackend):  # type: ignore[misc]  # Celery ships no types
    """Keeps what Celery notes of a task under ``results/<task id>``.

    It goes on trying until the store answers: with Celery's defaults, one failed write would turn a success into an
    acknowledged failure.

    Args:
        app: Its ``result_backend_transport_options`` name the store as ``objects_url``.
    """

    supports_autoexpire = True  # the sweep deletes a result together with its record

    def __init__(self, app: Celery, **options: Any) -> None:
        super().__init__(app, **options)
        self.objects = open_objects(app.conf.result_backend_transport_options["objects_url"])

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """Say that a store which is away will come back."""
        return isinstance(exc, UnavailableError)

    def get(self, key: bytes | str) -> bytes | None:
        """Return what is stored, or None."""
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

    def _object(self, key: bytes | str) -> str:
        text = key.decode() if isinstance(key, bytes) else key
        prefix = self.task_keyprefix.decode()
        return celery_object(text.removeprefix(prefix)) if text.startswith(prefix) else f"celery/{text}"
