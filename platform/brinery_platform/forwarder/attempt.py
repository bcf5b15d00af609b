"""One call in progress: its deadline, its socket, and stopping it from other threads."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections.abc import Iterator
from typing import Final

from brinery.errors import WorkerError

SLACK_SECONDS: Final = 0.01
"""How much later than its deadline a call may notice it."""


class NotSentError(WorkerError):
    """The worker could not be reached; nothing was sent, so this was not an attempt."""


class BrokenError(WorkerError):
    """The worker ended its connection without an answer; whether and why its process ended is to be asked."""


class Attempt:
    """One call in progress, so that other threads can stop it.

    Args:
        request_id: The worker's name of it.
        timeout_seconds: From now to the last byte of the answer.
    """

    def __init__(self, request_id: str, timeout_seconds: float) -> None:
        self.request_id = request_id
        self.deadline = time.monotonic() + timeout_seconds
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._aborted = False

    @property
    def left_seconds(self) -> float:
        """Time until its deadline, at least a millisecond (0 would mean forever to a socket)."""
        return max(0.001, self.deadline - time.monotonic())

    @property
    def late(self) -> bool:
        """Whether its deadline has passed."""
        return time.monotonic() >= self.deadline

    def bound(self, connected: socket.socket) -> None:
        """Let a socket wait until the deadline and no longer.

        Its limit is changed only where it is wrong by more than `SLACK_SECONDS`: that is a system call each time.
        """
        limit, left = connected.gettimeout(), self.left_seconds
        if limit is None or not 0 <= limit - left <= SLACK_SECONDS:
            connected.settimeout(left)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop its clock while its own thread waits for somebody else than the worker."""
        left = self.deadline - time.monotonic()
        self.deadline = math.inf
        try:
            yield
        finally:
            self.deadline = time.monotonic() + left

    def abort(self) -> None:
        """Make its thread fail at once, wherever it waits."""
        with self._lock:
            self._aborted = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def attach(self, connected: socket.socket | None) -> None:
        """Note the socket that carries it; None when it no longer does.

        Raises:
            NotSentError: It was aborted before anything was sent.
        """
        with self._lock:
            if connected is not None and self._aborted:
                raise NotSentError
            self._socket = connected
