"""Submitting tasks under known ids while the platform is being broken, and what became of each submission."""

from __future__ import annotations

import http.client
import json
import secrets
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fault_stack import FUNCTION, FaultStack

from stack import wait_until

SUBMIT_SECONDS = 150.0
"""How long it may take until enough tasks were accepted, the fault included."""
REQUEST_SECONDS = 15.0
LONG_SECONDS = 0.5
LARGE_BYTES = 100_000
"""Above what a record holds, so that the object store is part of every test."""


@dataclass(frozen=True)
class Wanted:
    """One submission: the task's arguments, and how the task should end."""

    seconds: float
    size: int = 0
    padding: str = ""
    die: bool = False

    @property
    def status(self) -> str:
        """The final status that is right for it."""
        return "failed" if self.die else "succeeded"


@dataclass
class Load:
    """Submissions to one stack; `start` makes them in the background until `count` are accepted.

    Args:
        stack: The platform.
        count: Tasks to be accepted.
        seconds: What each runs for.
        pause_seconds: Between two submissions.
        poison: How many of them kill their worker.
        large_every: How often a result is too large for a record.
        headers: Of every submission.
    """

    stack: FaultStack
    count: int = 300
    seconds: float = 0.04
    pause_seconds: float = 0.008
    poison: int = 0
    large_every: int = 10
    headers: dict[str, str] = field(default_factory=dict)
    wanted: dict[str, Wanted] = field(default_factory=dict)
    accepted: dict[str, float] = field(default_factory=dict)
    """When each task was acknowledged."""
    refused: dict[str, int] = field(default_factory=dict)
    """The status that the platform refused with."""
    unacknowledged: list[str] = field(default_factory=list)
    """Submissions without an answer: the task may exist or not."""

    def __post_init__(self) -> None:
        self._name = secrets.token_hex(4)
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._key = self.stack.key()
        self._stopping = threading.Event()
        self._ended: set[str] = set()
        self._offset = self.stack.executions.stat().st_size
        self.started_at = time.time()

    # ------------------------------------------------------------------------------------------------------ submitting
    def start(self) -> None:
        """Begin to submit in the background; `join` waits for it."""
        self._thread = threading.Thread(target=self._run, name="submitter", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until `count` tasks are accepted.

        Raises:
            AssertionError: They were not within `SUBMIT_SECONDS`.
        """
        assert self._thread is not None
        self._thread.join(SUBMIT_SECONDS + REQUEST_SECONDS + 5)
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Let no more be submitted."""
        self._stopping.set()

    def _run(self) -> None:
        try:
            self.submit(self.count)
        except BaseException as error:  # noqa: BLE001 - raised again by `join`, in the test
            self._failure = error

    def submit(self, count: int) -> list[str]:
        """Submit until `count` more tasks are accepted, and return their ids."""
        deadline = time.monotonic() + max(SUBMIT_SECONDS, count * self.pause_seconds * 10)
        done: list[str] = []
        connection = self._connection()
        while len(done) < count and not self._stopping.is_set():
            assert time.monotonic() < deadline, f"only {len(done)} of {count} tasks were accepted"
            number = len(self.wanted)
            task_id = f"tsk_{self._name}_{number:05d}"
            self.wanted[task_id] = wanted = self._choose(number)
            try:
                status = self._put(connection, task_id, wanted)
            except (OSError, http.client.HTTPException):
                self.unacknowledged.append(task_id)
                connection.close()
                connection = self._connection()
                time.sleep(0.05)
                continue
            if status == http.HTTPStatus.ACCEPTED:
                self.accepted[task_id] = time.time()
                done.append(task_id)
            else:
                self.refused[task_id] = status
                time.sleep(0.05)
            time.sleep(self.pause_seconds)
        connection.close()
        return done

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.stack.port, timeout=REQUEST_SECONDS)

    def _put(self, connection: http.client.HTTPConnection, task_id: str, wanted: Wanted) -> int:
        body = {"seconds": wanted.seconds, "log": str(self.stack.executions), "size": wanted.size}
        body |= {"padding": wanted.padding, "die": wanted.die}
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json", **self.headers}
        connection.request("PUT", f"/v1/endpoints/{FUNCTION}/tasks/{task_id}", json.dumps(body).encode(), headers)
        reply = connection.getresponse()
        reply.read()
        return reply.status

    def _choose(self, number: int) -> Wanted:
        """Every tenth is long, others have a large result or a large input, and the poison is spread."""
        if self.poison and number % (self.count // self.poison) == 20:
            return Wanted(self.seconds, die=True)
        if number % 10 == 5:
            return Wanted(max(LONG_SECONDS, self.seconds))
        size = LARGE_BYTES if number % self.large_every == self.large_every // 3 else 0
        padding = "y" * LARGE_BYTES if number % 10 == 7 else ""
        return Wanted(self.seconds, size, padding)

    # -------------------------------------------------------------------------------------------------------- watching
    def ended(self) -> int:
        """Return how many of its tasks have run to their end so far, by the log outside of the platform."""
        with Path(self.stack.executions).open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                entry: dict[str, Any] = json.loads(line)
                if entry["what"] == "ended" and entry["task"] in self.wanted:
                    self._ended.add(entry["task"])
        return len(self._ended)

    def until_ended(self, count: int) -> None:
        """Wait until so many of its tasks have run to their end."""
        wait_until(lambda: self.ended() >= count, seconds=60, what=f"{count} tasks to have run")
