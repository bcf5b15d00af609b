"""Calls of workers without a supervisor: how one is stopped, and what became of one whose connection broke."""

from __future__ import annotations

import contextlib
import threading
import time

import redis

from brinery_platform.condemned import REST_SECONDS, Condemned, Sentence
from brinery_platform.fates import Fate, fate_from_end
from brinery_platform.forwarder.attempt import Attempt, NotSentError
from brinery_platform.routes import WorkerRoute


class ImageCalls:
    """The calls that one forwarder has at images; for threads.

    Args:
        client: The platform's Redis.
        endpoint_id: Whose workers they are.
    """

    def __init__(self, client: redis.Redis, endpoint_id: str) -> None:
        self._condemned = Condemned(client)
        self._endpoint_id = endpoint_id
        self._lock = threading.Lock()
        self._running: dict[str, Attempt] = {}
        self._resting_until: dict[str, float] = {}

    def begin(self, worker: WorkerRoute, attempt: Attempt) -> None:
        """Note an attempt that is about to be sent.

        Raises:
            NotSentError: Its worker is being replaced for the sake of an earlier one.
        """
        with self._lock:
            if self._resting_until.get(worker.id, 0.0) > time.monotonic():
                raise NotSentError("The worker is being replaced.", worker_id=worker.id)
            self._running[attempt.request_id] = attempt

    def end(self, attempt: Attempt) -> None:
        """Note that an attempt is over."""
        with self._lock:
            self._running.pop(attempt.request_id, None)

    def cancel(self, worker: WorkerRoute, request_id: str, *, timed_out: bool) -> bool:
        """Stop a call: its connection is cut, and the worker replaced unless the image stops calls by itself.

        Returns:
            Whether it was cut, and the controller told where that is needed.
        """
        with self._lock:
            attempt = self._running.get(request_id)
            told = self._resting_until.get(worker.id, 0.0) > time.monotonic()
        if worker.on_cancel == "replace" and not told:
            why = "ran longer than its timeout" if timed_out else "was cancelled"
            sentence = Sentence(endpoint_id=self._endpoint_id, request_id=request_id, reason=f"call {request_id} {why}")
            try:
                self._condemned.add(worker.id, sentence)
            except redis.RedisError:
                return False
            with self._lock:
                now = time.monotonic()
                self._resting_until = {one: until for one, until in self._resting_until.items() if until > now}
                self._resting_until[worker.id] = now + REST_SECONDS
        if attempt is not None:
            attempt.abort()
        return True

    def fate(self, worker: WorkerRoute, request_id: str) -> Fate:
        """Return what became of a request whose connection broke; waits until the controller can have said it."""
        end = None
        with contextlib.suppress(redis.RedisError):
            end = self._condemned.end_of(worker.id)
        return fate_from_end(end, request_id)
