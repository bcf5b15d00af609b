"""The slots of a worker: who may run, and how one running request is stopped without touching another.

Stopping means an exception raised in a thread from outside, which Python delivers "soon", wherever that thread then
is. `Running.run` makes sure that it is only ever delivered inside user code: the stopper marks the request first and
looks at `_interruptible` second, the request does it the other way round, so that one of them always sees the other,
and an exception on its way when user code ends is waited for and taken back.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from brinery.errors import BrineryError, TaskCancelledError, UpstreamTimeoutError, WorkerBusyError
from brinery_worker.board import MAX_REQUEST_ID_BYTES, Board

T = TypeVar("T")

ADMISSION_WAIT_SECONDS: Final = 0.02
"""How long a request may wait for a slot: enough to bridge the hop to the caller's next request, too short to queue."""

SENDING_SECONDS: Final = 0.2
"""How long a stopped request may take to send its item; well below the second after which its process is killed."""

_cutting = threading.Lock()
"""Held while a connection is cut, or let go by its request."""

_raise_in_thread = ctypes.pythonapi.PyThreadState_SetAsyncExc
_raise_in_thread.argtypes = (ctypes.c_ulong, ctypes.py_object)


class RequestStopped(BaseException):
    """This request was cancelled, or its time is over; finish what must be finished and let it pass."""


class Running:
    """One request that holds a slot, in the thread that serves it; never used again afterwards.

    Args:
        index: Its slot.
        sequence: Its number in this process.

    Attributes:
        cancel_coroutine: How to stop the coroutine that the thread waits for, while it does.
        connection: The client's socket, while a stream is sent over it.
    """

    __slots__ = (
        "_interruptible",
        "_settled",
        "_stop_reason",
        "_thread_id",
        "cancel_coroutine",
        "connection",
        "index",
        "sequence",
    )

    def __init__(self, index: int, sequence: int) -> None:
        self.index = index
        self.sequence = sequence
        self.cancel_coroutine: Callable[[], object] | None = None
        self.connection: socket.socket | None = None
        self._thread_id = threading.get_ident()
        self._interruptible = False
        self._stop_reason: str | None = None
        self._settled = False

    @property
    def stopped(self) -> bool:
        """Whether this request is to end."""
        return self._stop_reason is not None

    def run(self, step: Callable[[], T]) -> T:
        """Run user code in such a way that it can be stopped.

        Args:
            step: Called once, in this thread; everything that user code can take part in belongs into it.

        Returns:
            What `step` returned.

        Raises:
            RequestStopped: The request was stopped, before or meanwhile.
            BaseException: Whatever `step` raised.
        """
        try:
            try:
                self._interruptible = True
                if self._stop_reason is not None:
                    raise RequestStopped
                return step()
            finally:
                self._interruptible = False
        finally:
            # Twice, for the exception that comes between the inner `finally` and its first line. It is raised once
            # per request at most, so after that line nothing comes any more but what is on its way already.
            self._interruptible = False
            if self._stop_reason is not None:
                self._absorb()

    def stop(self, reason: str) -> None:
        """Stop this request; called from another thread, once at most.

        Args:
            reason: ``cancelled`` or ``timeout``.
        """
        self._stop_reason = reason
        try:
            cancel = self.cancel_coroutine
            if cancel is not None:
                cancel()
            elif self._interruptible:
                _raise_in_thread(self._thread_id, ctypes.py_object(RequestStopped))
            elif self.connection is not None:
                self._cut_soon()
        finally:
            self._settled = True

    def leave(self) -> None:
        """Let the connection go; it may carry another request now."""
        if self.connection is not None:
            with _cutting:
                self.connection = None

    def error(self) -> BrineryError:
        """Return the error for the caller of a stopped request."""
        if self._stop_reason == "timeout":
            return UpstreamTimeoutError("The function ran longer than the request's timeout; it was stopped.")
        return TaskCancelledError("The request was cancelled while it ran.")

    def _cut_soon(self) -> None:
        """End the sending of an item: the next step sees the stop, and a client that does not read loses its socket."""
        timer = threading.Timer(SENDING_SECONDS, self._cut)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:  # user code has every thread that there may be
            self._cut()

    def _cut(self) -> None:
        with _cutting, contextlib.suppress(OSError):  # it may be closed already
            if self.connection is not None:
                self.connection.shutdown(socket.SHUT_RDWR)

    def _absorb(self) -> None:
        try:
            while not self._settled:
                time.sleep(0.001)
            _raise_in_thread(self._thread_id, ctypes.py_object())  # NULL: take back what is on its way
        except RequestStopped:
            pass


class Slots:
    """All slots of this process.

    Args:
        board: Where the supervisor reads who runs.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._running: list[Running | None] = [None] * board.slots
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._turns: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._sequences = itertools.count(1)
        for index in range(board.slots):
            self._free.put(index)
            self._turns.put(None)

    @property
    def count(self) -> int:
        """How many there are."""
        return self._board.slots

    @property
    def idle(self) -> bool:
        """Whether no request runs."""
        return not any(self._running)

    def enter(self, request_id: str, timeout_seconds: float | None) -> Running:
        """Take a slot for the request of this thread.

        Args:
            request_id: By which it can be cancelled.
            timeout_seconds: When the supervisor is to stop it, counted from now; None for never.

        Raises:
            WorkerBusyError: Every slot is taken, or the worker is draining.
        """
        if self._board.draining:
            raise WorkerBusyError("The worker is stopping; call another one.")
        try:
            index = self._free.get_nowait()
        except queue.Empty:
            index = self._wait()
        running = Running(index, next(self._sequences))
        self._running[index] = running
        deadline = time.monotonic() + timeout_seconds if timeout_seconds is not None else math.inf
        self._board.enter(index, running.sequence, request_id.encode()[:MAX_REQUEST_ID_BYTES], deadline)
        return running

    def leave(self, running: Running) -> None:
        """Give the slot back; the request's user code has ended."""
        running.leave()
        self._board.leave(running.index)
        self._running[running.index] = None
        self._free.put(running.index)

    def stop(self, index: int, sequence: int, reason: str) -> None:
        """Stop the request `sequence` if it is still in slot `index`; see `Running.stop`."""
        running = self._running[index]
        if running is not None and running.sequence == sequence and not running.stopped:
            running.stop(reason)

    def _wait(self) -> int:
        try:
            turn = self._turns.get_nowait()
        except queue.Empty:
            raise WorkerBusyError from None
        try:
            return self._free.get(timeout=ADMISSION_WAIT_SECONDS)
        except queue.Empty:
            raise WorkerBusyError from None
        finally:
            self._turns.put(turn)
