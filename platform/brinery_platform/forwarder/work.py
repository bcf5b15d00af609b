"""One message's way through a forwarder: wait for a slot, claim, call the worker, and say what came of it.

A task is claimed only when a worker's slot is free, so that waiting for a cold worker costs no attempt.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, BinaryIO, Final, TypeVar

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
)
from brinery_platform.forwarder.answers import read_answer
from brinery_platform.forwarder.attempt import Attempt, BrokenError, NotSentError
from brinery_platform.forwarder.blame import judge
from brinery_platform.forwarder.incarnation import Incarnation
from brinery_platform.forwarder.outcomes import Again, AttemptClock, Settled, cancelled, failed
from brinery_platform.forwarder.payloads import InputStream, request_of
from brinery_platform.forwarder.reports import WorkerLogs, attempt_report
from brinery_platform.forwarder.slots import MAX_SLOTS, Slot, Slots, Ticket
from brinery_platform.forwarder.worker_calls import WorkerCalls
from brinery_platform.objects import Objects
from brinery_platform.routes import DEMAND, WorkerRoute
from brinery_platform.runtimes.base import LogMark
from brinery_platform.tasks import Tasks, redis_errors
from brinery_platform.transitions import Charge, Claim, new_token

T = TypeVar("T")

log = structlog.get_logger()

QUIET_SECONDS: Final = 0.5
"""How long a message waits for one of the workers before it is noted that it is held; see `LOST_AFTER_SECONDS`."""
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
MAX_PAUSE_SECONDS: Final = 30.0
"""Between two tries to write an outcome that fails with an error which nobody foresaw."""


@dataclass
class _Running:
    """A task in this process, from its message to its end."""

    task_id: str
    cancelled: bool = False
    slot: Slot | None = None
    worker: WorkerRoute | None = None
    attempt: Attempt | None = None
    log_mark: LogMark | None = None
    claim: Claim | None = None
    clock: AttemptClock | None = None
    sent_at: float | None = None
    answered_at: float | None = None
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
        logs: Where the last words of workers are read.
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
        logs: WorkerLogs,
        stopping: threading.Event,
    ) -> None:
        self._endpoint_id = endpoint_id
        self._tasks = tasks
        self._objects = objects
        self._client = client
        self._incarnation = incarnation
        self._slots = slots
        self._logs = logs
        self._stopping = stopping
        self.calls = WorkerCalls(client, endpoint_id)
        self._running: dict[str, _Running] = {}
        self._cancels = ThreadPoolExecutor(max_workers=MAX_SLOTS, thread_name_prefix="cancel")

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
            running.slot = self._wait_for_slot(task_id)
            claim = self._claim(running)
            outcome = self._run(running, claim)
            return outcome if isinstance(outcome, Settled) else self._again(running, claim, outcome)
        except _DropError:
            return None
        except Exception:
            # The outermost place of a message's way: whatever went wrong, the task must not stay `running`.
            log.exception("the forwarder failed", task=task_id)
            if running.claim is None:
                self._give_back(task_id)
                return None
            return failed(running.claim, BrineryError("The platform failed here; see the forwarder's log."), dead=True)
        finally:
            self._let_go(running)
            self._running.pop(task_id, None)
            running.done.set()

    def settle(self, settled: Settled) -> None:
        """Finish the record; a large result is stored already. Goes on trying until it is done."""
        if settled.clock is not None:
            settled.values["stored_at"] = settled.clock.now()
        outcome = self._insist(
            lambda: self._tasks.finish(
                settled.claim,
                settled.status,
                reason=settled.reason,
                dead=settled.dead,
                report=settled.report,
                **settled.values,
            )
        )
        if outcome != "finished":
            log.warning("attempt had been given up", attempt=settled.claim.request_id, outcome=outcome)

    def _wait_for_slot(self, task_id: str) -> Slot:
        """Take a worker's slot; while there is none, hold the message and say once a second that one is needed."""
        # With workers there it is a matter of milliseconds mostly: noting that would cost more than the waiting, and
        # the sweep takes a message for lost only later.
        slot = self._slots.acquire(QUIET_SECONDS if self._slots.workers else 0)
        while slot is None:
            mine = self._incarnation.id
            if self._stopping.is_set():
                self._give_back(task_id)
                raise _DropError
            if self._patient(partial(self._tasks.hold, task_id, mine), unless=self._stopping.is_set) != "held":
                raise _DropError
            self._demand()
            slot = self._slots.acquire(DEMAND_SECONDS)
        return slot

    def _give_back(self, task_id: str) -> None:
        """Put a message back that was not used; should that fail, it is lost, and the sweep publishes it again."""
        with contextlib.suppress(Exception):
            mine = self._incarnation.id
            if self._tasks.hold(task_id, mine) == "held":
                self._tasks.release(task_id, mine)

    def _demand(self) -> None:
        with contextlib.suppress(UnavailableError), redis_errors():
            self._client.publish(DEMAND, self._endpoint_id)

    def _claim(self, running: _Running) -> Claim:
        token = new_token()
        while True:
            mine = self._incarnation.id
            claimed = self._patient(partial(self._tasks.claim, running.task_id, mine, token))
            if claimed.claim is not None:
                running.claim = claimed.claim
                running.clock = AttemptClock(claimed.claim.task.started_at or time.time())
                return claimed.claim
            if claimed.reason != "unregistered":
                raise _DropError
            # Not at once under a new name: after Redis stood still the lease is over, but nobody was declared dead.
            self._patient(self._incarnation.renew, unless=self._stopping.is_set)

    def _run(self, running: _Running, claim: Claim) -> Settled | Again:
        """Call workers until one takes the task, for a short while.

        The slot is free again when this returns, unless the task was not run: then it is kept until the record says
        so, or a second one would be `running` for it.
        """
        give_up_at: float | None = None
        failure: WorkerError | WorkerBusyError
        while not self._is_over(running):
            if claim.task.alone and running.slot is not None and not running.slot.whole:
                self._let_go(running)
                running.slot = self._wait_for_own_worker(running)
            if running.slot is None:
                break
            slot = running.slot
            give_up_at = give_up_at or time.monotonic() + BUSY_SECONDS
            try:
                outcome = self._call(running, claim, slot)
            except WorkerBusyError as error:
                rest_seconds, failure = BUSY_REST_SECONDS, error
            except NotSentError as error:
                rest_seconds, failure = UNREACHABLE_REST_SECONDS, error
            except BrokenError as error:
                outcome = self._blamed(running, claim, slot, error)
                self._let_go(running, broken=True)
                return outcome
            else:
                if isinstance(outcome, Settled) or outcome.charge != "none":
                    self._let_go(running)
                return outcome
            left_seconds = give_up_at - time.monotonic()
            found = self._slots.exchange(
                slot, left_seconds, rest_seconds=rest_seconds, unless=partial(self._is_over, running)
            )
            if found is None and not self._is_over(running):
                return Again(error=failure, charge="none", delay_seconds=UNREACHABLE_DELAY_SECONDS)
            running.slot = found or slot
        return self._unsent(running, claim)

    def _let_go(self, running: _Running, *, broken: bool = False) -> None:
        if running.slot is not None:
            slot, running.slot = running.slot, None
            self._slots.release(slot, broken=broken)

    def _is_over(self, running: _Running) -> bool:
        """Whether a task that was not sent to a worker is not to be sent any more."""
        return running.cancelled or self._stopping.is_set()

    def _unsent(self, running: _Running, claim: Claim) -> Settled | Again:
        if running.cancelled:
            return self._noted(running, cancelled(claim))
        return Again(error=UnavailableError("The forwarder stops."), charge="none", delay_seconds=0.0)

    def _wait_for_own_worker(self, running: _Running) -> Slot | None:
        """Take all slots of a worker; None when the task was cancelled or this process is to end."""
        ticket = Ticket()
        try:
            while not running.cancelled and not self._stopping.is_set():
                slot = self._slots.acquire(DEMAND_SECONDS, ticket)
                if slot is not None:
                    return slot
                self._demand()
            return None
        finally:
            self._slots.abandon(ticket)

    # ------------------------------------------------------------------------------------------------ one attempt
    def _call(self, running: _Running, claim: Claim, slot: Slot) -> Settled | Again:
        def patient(call: Callable[[], T]) -> T:
            return self._patient(call, unless=partial(self._is_over, running))

        try:
            # The input first: waiting for the store is no time of the function's.
            with request_of(claim, self._objects, patient) as (body, headers):
                outcome = self._ask(running, claim, slot.worker, body, headers)
        except _DropError:
            return self._unsent(running, claim)
        except (WorkerBusyError, NotSentError, BrokenError):
            if running.cancelled:
                return self._noted(running, cancelled(claim))
            raise
        except (UpstreamTimeoutError, WorkerError) as error:
            if isinstance(error, UpstreamTimeoutError):
                self.calls.cancel(slot.worker, claim.request_id, timed_out=True)
            outcome = Again(error=error)
        except UnavailableError as error:  # the input could not be read to its end, so nothing was run
            outcome = Again(error=error, charge="none", delay_seconds=UNREACHABLE_DELAY_SECONDS)
        except (NotFoundError, PayloadTooLargeError) as error:
            outcome = failed(claim, error)
        # A success counts although somebody wanted to stop it; an error is how a stopped request ends.
        if running.cancelled and outcome.error is not None:
            outcome = cancelled(claim)
        return self._noted(running, outcome) if isinstance(outcome, Settled) else outcome

    def _ask(
        self, running: _Running, claim: Claim, worker: WorkerRoute, body: bytes | BinaryIO, headers: dict[str, str]
    ) -> Settled | Again:
        assert running.clock is not None  # noqa: S101 - set by the claim
        attempt = Attempt(claim.request_id, claim.task.timeout_seconds)
        with running.lock:
            if running.cancelled:
                raise _DropError
            running.worker, running.attempt = worker, attempt
        running.log_mark = self._logs.mark(worker.id)
        running.sent_at = running.clock.now()
        data = body if isinstance(body, bytes) else InputStream(body, attempt)
        with self.calls.predict(worker, data, headers, attempt) as reply:
            running.answered_at = running.clock.now()
            return read_answer(claim, reply, self._objects, self._patient)

    def _blamed(self, running: _Running, claim: Claim, slot: Slot, error: BrokenError) -> Settled | Again:
        """Find out why the connection broke, and whose fault it was."""
        fate = self.calls.fate(slot.worker, claim.request_id)
        if fate.fate == "running":
            self.calls.cancel(slot.worker, claim.request_id)  # nobody would hear its answer
        if running.cancelled:
            return self._noted(running, cancelled(claim))
        error.context["worker_id"] = slot.worker.id
        return judge(fate, error, alone=slot.whole, company=self._slots.company(slot))

    def _noted(self, running: _Running, settled: Settled) -> Settled:
        """Add what is known of the attempt: its times and, unless it succeeded, a report."""
        settled.clock = running.clock
        times = {"sent_at": running.sent_at, "answered_at": running.answered_at}
        settled.values.update({name: at for name, at in times.items() if at is not None})
        if settled.error is not None:
            settled.report = self._report(running, settled.claim, settled.error, settled.reason, "full")
        return settled

    def _report(
        self, running: _Running, claim: Claim, error: BrineryError, reason: str, charge: Charge
    ) -> dict[str, Any]:
        worker_id = running.worker.id if running.worker else None
        return attempt_report(
            claim,
            charge=charge,
            reason=reason,
            worker_id=worker_id,
            error=error,
            ended_at=running.clock.now() if running.clock else time.time(),
            log_tail=self._logs.tail(worker_id, running.log_mark) if worker_id and running.log_mark else "",
        )

    def _again(self, running: _Running, claim: Claim, again: Again) -> Settled | None:
        """Queue the task again, or fail it when this was its last attempt."""
        if again.charge == "full" and claim.task.attempt >= claim.task.max_attempts:
            return self._noted(running, failed(claim, again.error, reason=again.reason, dead=True))
        report = None  # what never began was no attempt
        if again.charge != "none":
            report = self._report(running, claim, again.error, again.reason, again.charge)
        self._insist(
            lambda: self._tasks.requeue(
                claim,
                reason=again.reason,
                charge=again.charge,
                error=again.error,
                delay_seconds=again.delay_seconds,
                report=report,
                alone=again.alone,
            )
        )
        return None

    def _patient(self, call: Callable[[], T], *, unless: Callable[[], bool] | None = None) -> T:
        """Repeat `call` until Redis or the object store answers; each is safe to repeat.

        Raises:
            _DropError: It did not answer, and `unless` says not to go on.
        """
        while True:
            try:
                return call()
            except UnavailableError as error:
                if unless is not None and unless():
                    raise _DropError from error
                log.warning("waiting", reason=error.message)
                time.sleep(RETRY_SECONDS)

    def _insist(self, call: Callable[[], T]) -> T:
        """Repeat the writing of an outcome whatever it raises: nobody else knows it.

        Once the process is to end, an error that is no lack of an answer is raised.
        """
        pause = RETRY_SECONDS
        while True:
            try:
                return self._patient(call)
            except Exception:
                if self._stopping.is_set():
                    raise
                log.exception("an outcome cannot be written", again_in_seconds=pause)
                self._stopping.wait(pause)
                pause = min(2 * pause, MAX_PAUSE_SECONDS)

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
        self._logs.close()
        self.calls.forget(frozenset())

    def _stop_slot(self, running: _Running) -> None:
        with running.lock:
            running.cancelled = True
            worker, attempt = running.worker, running.attempt
        self._slots.wake()
        if worker is None or attempt is None:
            return  # its thread looks before it calls
        give_up_at = time.monotonic() + CANCEL_GRACE_SECONDS
        while time.monotonic() < give_up_at:
            # Again and again: the first may come before the request itself.
            self.calls.cancel(worker, attempt.request_id)
            if running.done.wait(1.0):
                return
        attempt.abort()
