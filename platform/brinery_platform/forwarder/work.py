"""One message's way through a forwarder: wait for a slot, claim, call the worker, and say what came of it.

A task is claimed only when a worker's slot is free, so that waiting for a cold worker costs no attempt.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any, BinaryIO, Final, TypeVar, cast

import orjson
import redis
import structlog

from brinery.errors import (
    BrineryError,
    NotFoundError,
    PayloadTooLargeError,
    UnavailableError,
    UpstreamTimeoutError,
    WorkerBusyError,
    WorkerError,
    error_from_json,
)
from brinery.spec import (
    CONTENT_JSON,
    HEADER_ATTEMPT,
    HEADER_REQUEST_ID,
    HEADER_TASK_ID,
    HEADER_TIMEOUT_SECONDS,
    INLINE_BYTES,
    TaskStatus,
)
from brinery_platform.forwarder.incarnation import Incarnation
from brinery_platform.forwarder.outcomes import Settled, bounded, cancelled, failed
from brinery_platform.forwarder.slots import Slots
from brinery_platform.forwarder.worker_calls import (
    MAX_ERROR_BYTES,
    Attempt,
    NotSentError,
    Reply,
    WorkerCalls,
)
from brinery_platform.objects import Objects
from brinery_platform.records import result_object
from brinery_platform.routes import DEMAND, WorkerRoute
from brinery_platform.tasks import Tasks, redis_errors
from brinery_platform.transitions import Claim, new_token

T = TypeVar("T")

log = structlog.get_logger()

DEMAND_SECONDS: Final = 1.0
"""How often a task that waits for a worker says so."""
BUSY_SECONDS: Final = 2.0
"""How long a claimed task looks for another worker when one was busy, before it is queued again."""
BUSY_REST_SECONDS: Final = 0.05
UNREACHABLE_REST_SECONDS: Final = 1.0
UNREACHABLE_DELAY_SECONDS: Final = 0.5
CANCEL_GRACE_SECONDS: Final = 5.0
"""How long a worker may take to stop a cancelled request before its connection is cut."""
RETRY_SECONDS: Final = 0.2
SPOOL_BYTES: Final = 8 * 1024 * 1024


@dataclass
class _Running:
    """A task in this process, from before its claim to its end."""

    task_id: str
    cancelled: bool = False
    worker: WorkerRoute | None = None
    attempt: Attempt | None = None
    claim: Claim | None = None
    done: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)


class _DropError(Exception):
    """The message has nothing more to say."""


class ForwarderWork:
    """The work of one endpoint's forwarder, without Celery; for threads.

    Args:
        endpoint_id: Whose tasks.
        tasks: The records.
        objects: Large inputs and results.
        client: Redis, for signals.
        incarnation: Registered already.
        slots: Kept up to date by the process.
        stopping: Set when the process is to end.
    """

    def __init__(
        self,
        endpoint_id: str,
        *,
        tasks: Tasks,
        objects: Objects,
        client: redis.Redis,
        incarnation: Incarnation,
        slots: Slots,
        stopping: threading.Event,
    ) -> None:
        self._endpoint_id = endpoint_id
        self._tasks = tasks
        self._objects = objects
        self._client = client
        self._incarnation = incarnation
        self._slots = slots
        self._stopping = stopping
        self.calls = WorkerCalls()
        self._running: dict[str, _Running] = {}
        self._cancels = ThreadPoolExecutor(max_workers=4, thread_name_prefix="cancel")

    # ---------------------------------------------------------------------------------------------- one message
    def take(self, task_id: str) -> Settled | None:
        """Run a task once.

        Args:
            task_id: From the message.

        Returns:
            What ends the task, or None when the message is to be dropped: the record says where the task stands.
        """
        running = _Running(task_id)
        if self._running.setdefault(task_id, running) is not running:
            return None  # a second message while the first one is worked on
        try:
            worker = self._wait_for_slot(task_id)
            try:
                running.claim = self._claim(task_id)
            except BaseException:
                self._slots.release(worker)
                raise
            return self._run(running, running.claim, worker)
        except _DropError:
            return None
        except Exception:
            # The outermost place of a message's way: whatever went wrong, the task must not stay `running`.
            log.exception("the forwarder failed", task=task_id)
            if running.claim is None:
                return None  # its message is lost then, and the sweep publishes it again
            return failed(running.claim, BrineryError("The platform failed here; see the forwarder's log."), dead=True)
        finally:
            self._running.pop(task_id, None)
            running.done.set()

    def settle(self, settled: Settled) -> None:
        """Finish the record; its result is stored already. Goes on trying until Redis answers."""
        outcome = self._patient(
            lambda: self._tasks.finish(
                settled.claim,
                settled.status,
                reason=settled.error.wire_type() if settled.error else "answered",
                dead=settled.dead,
                **settled.values,
            ),
            until_stopped=False,
        )
        if outcome != "finished":
            log.warning("attempt had been given up", attempt=settled.claim.request_id, outcome=outcome)

    def _wait_for_slot(self, task_id: str) -> WorkerRoute:
        """Take a worker's slot; while there is none, hold the message and say once a second that one is needed."""
        worker = self._slots.acquire(0)
        while worker is None:
            mine = self._incarnation.id
            if self._stopping.is_set():
                with contextlib.suppress(UnavailableError):  # the sweep then finds that the message is lost
                    self._tasks.release(task_id, mine)
                raise _DropError
            if self._patient(partial(self._tasks.hold, task_id, mine)) != "held":
                raise _DropError
            with contextlib.suppress(UnavailableError), redis_errors():
                self._client.publish(DEMAND, self._endpoint_id)
            worker = self._slots.acquire(DEMAND_SECONDS)
        return worker

    def _claim(self, task_id: str) -> Claim:
        token = new_token()
        while True:
            mine = self._incarnation.id
            claimed = self._patient(partial(self._tasks.claim, task_id, mine, token))
            if claimed.claim is not None:
                return claimed.claim
            if claimed.reason != "unregistered":
                raise _DropError
            self._patient(partial(self._incarnation.register, instead_of=mine))

    def _run(self, running: _Running, claim: Claim, worker: WorkerRoute) -> Settled | None:
        """Call workers until one takes the task, for a short while; each was given back when this returns."""
        give_up_at = time.monotonic() + BUSY_SECONDS
        while True:
            rest_seconds = 0.0
            failure: WorkerError | WorkerBusyError
            try:
                return self._call(running, claim, worker)
            except WorkerBusyError as error:
                rest_seconds, failure = BUSY_REST_SECONDS, error
            except NotSentError as error:
                rest_seconds, failure = UNREACHABLE_REST_SECONDS, error
            finally:
                self._slots.release(worker, rest_seconds=rest_seconds)
            found = None if running.cancelled else self._slots.acquire(give_up_at - time.monotonic())
            if found is None:
                return self._again(claim, failure, charged=False, delay_seconds=UNREACHABLE_DELAY_SECONDS)
            worker = found

    # ------------------------------------------------------------------------------------------------ one attempt
    def _call(self, running: _Running, claim: Claim, worker: WorkerRoute) -> Settled | None:
        task = claim.task
        attempt = Attempt(claim.request_id, task.timeout_seconds)
        with running.lock:
            if running.cancelled:
                return cancelled(claim)
            running.worker, running.attempt = worker, attempt
        try:
            with self._input(claim) as (body, headers), self.calls.predict(worker, body, headers, attempt) as reply:
                settled = self._read(claim, reply)
            # A success counts although somebody wanted to stop it; an error is how a stopped request ends.
            return cancelled(claim) if running.cancelled and settled.error is not None else settled
        except (WorkerBusyError, NotSentError):
            if running.cancelled:
                return cancelled(claim)
            raise
        except (UpstreamTimeoutError, WorkerError) as error:
            if running.cancelled:
                return cancelled(claim)
            if isinstance(error, UpstreamTimeoutError):
                self.calls.cancel(worker, claim.request_id)
            return self._again(claim, error, charged=True, delay_seconds=None)
        except UnavailableError as error:  # the input could not be read to its end, so nothing was run
            return self._again(claim, error, charged=False, delay_seconds=UNREACHABLE_DELAY_SECONDS)
        except (NotFoundError, PayloadTooLargeError) as error:
            return failed(claim, error)

    @contextlib.contextmanager
    def _input(self, claim: Claim) -> Iterator[tuple[bytes | BinaryIO, dict[str, str]]]:
        task = claim.task
        headers = {
            "Content-Type": task.input_type,
            HEADER_REQUEST_ID: claim.request_id,
            HEADER_TASK_ID: task.id,
            HEADER_ATTEMPT: str(task.attempt),
            HEADER_TIMEOUT_SECONDS: f"{task.timeout_seconds:g}",
        }
        if task.input_object is None:
            yield task.input or b"", headers
            return
        key = task.input_object
        headers["Content-Length"] = str(self._patient(lambda: self._objects.size(key)))
        with contextlib.ExitStack() as stack:
            stream = self._patient(lambda: stack.enter_context(self._objects.open(key)))
            yield stream, headers

    def _read(self, claim: Claim, reply: Reply) -> Settled:
        if reply.status == HTTPStatus.OK:
            return self._store(claim, reply)
        body = reply.read_up_to(MAX_ERROR_BYTES)
        if reply.status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
            raise WorkerBusyError
        if reply.status in {HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT}:
            raise WorkerError(f"The worker answered with status {reply.status}; see its logs.")
        try:
            decoded = orjson.loads(body)
        except orjson.JSONDecodeError:
            decoded = None
        return failed(claim, bounded(error_from_json(decoded, status=reply.status)))

    def _store(self, claim: Claim, reply: Reply) -> Settled:
        """Keep a result: small ones travel in the record, large ones lie in the object store when this returns."""
        first = reply.read_up_to(INLINE_BYTES + 1)
        values: dict[str, Any] = {"result_type": reply.content_type or CONTENT_JSON}
        answer: Any = {"type": values["result_type"]}
        if len(first) <= INLINE_BYTES:
            values["result"] = first
            if values["result_type"].startswith(CONTENT_JSON):
                with contextlib.suppress(orjson.JSONDecodeError):  # what is no JSON after all is only in the record
                    answer = orjson.loads(first)
            return Settled(claim=claim, status=TaskStatus.SUCCEEDED, values=values, answer=answer)
        key = result_object(claim.task.id, claim.task.attempt)
        # Kept here first: the worker's answer cannot be asked for again if the store is away.
        with tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES) as spool:
            spool.write(first)
            while data := reply.read(SPOOL_BYTES):
                spool.write(data)

            def put() -> int:
                spool.seek(0)
                return self._objects.put(key, cast("BinaryIO", spool))

            size = self._patient(put, until_stopped=False)
        values["result_object"] = key
        answer |= {"object": key, "size_bytes": size}
        return Settled(claim=claim, status=TaskStatus.SUCCEEDED, values=values, answer=answer)

    def _again(
        self, claim: Claim, error: BrineryError, *, charged: bool, delay_seconds: float | None
    ) -> Settled | None:
        """Queue the task again, or fail it when this was its last attempt."""
        if charged and claim.task.attempt >= claim.task.max_attempts:
            return failed(claim, error, dead=True)
        self._patient(
            lambda: self._tasks.requeue(
                claim, reason=error.wire_type(), charged=charged, error=error, delay_seconds=delay_seconds
            ),
            until_stopped=False,
        )
        return None

    def _patient(self, call: Callable[[], T], *, until_stopped: bool = True) -> T:
        """Repeat `call` until Redis or the object store answers; each is safe to repeat."""
        while True:
            try:
                return call()
            except UnavailableError as error:
                if until_stopped and self._stopping.is_set():
                    raise _DropError from error
                log.warning("waiting", reason=error.message)
                time.sleep(RETRY_SECONDS)

    # --------------------------------------------------------------------------------------- from other threads
    def cancel(self, task_id: str) -> None:
        """Stop a task if it runs here; returns at once."""
        running = self._running.get(task_id)
        if running is not None and not running.cancelled:
            self._cancels.submit(self._stop_slot, running)

    def recheck(self) -> None:
        """Stop what was cancelled while nobody could tell us.

        Raises:
            UnavailableError: Redis did not answer.
        """
        for task_id in self._tasks.cancel_requested(list(self._running)):
            self.cancel(task_id)

    def cut_late(self) -> None:
        """Cut the connections of attempts that are past their deadline: a worker that drips bytes holds none."""
        for running in list(self._running.values()):
            attempt = running.attempt
            if attempt is not None and attempt.late:
                attempt.abort()

    def close(self) -> None:
        """Let go of threads and connections."""
        self._cancels.shutdown()
        self.calls.forget(frozenset())

    def _stop_slot(self, running: _Running) -> None:
        with running.lock:
            running.cancelled = True
            worker, attempt = running.worker, running.attempt
        if worker is None or attempt is None:
            return  # its thread looks before it calls
        give_up_at = time.monotonic() + CANCEL_GRACE_SECONDS
        while time.monotonic() < give_up_at:
            # Again and again: the first may come before the request itself.
            self.calls.cancel(worker, attempt.request_id)
            if running.done.wait(1.0):
                return
        attempt.abort()
