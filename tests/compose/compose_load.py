"""Tasks and calls without pause while something of the stack is broken, and what became of each."""

from __future__ import annotations

import json
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
from compose_stack import ComposeStack

from stack import wait_until

FUNCTION = "counted"
CODE = f'''
"""One function whose answer tells which task and which attempt it belongs to."""
import time

from brinery import current_request, endpoint


@endpoint(max_workers=1, min_workers=1, concurrency=4, max_attempts=5, timeout_seconds=60)
def {FUNCTION}(number: int, seconds: float = 0.0, size: int = 0) -> dict:
    time.sleep(seconds)
    request = current_request()
    return {{"number": number, "task": request.task_id, "filling": "x" * size}}
'''
LARGE_BYTES = 100_000
"""Above what a record holds, so that the object store is part of it."""
FINAL_SECONDS = 120
FINAL = {"succeeded", "failed", "cancelled", "expired"}


@dataclass
class Load:
    """Two threads: one submits tasks under ids of its own until each is accepted, one calls and waits.

    Args:
        stack: Where.
    """

    stack: ComposeStack
    accepted: dict[str, int] = field(default_factory=dict)
    answered: int = 0
    wrong: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    """Calls that broke off or were refused, in words."""

    def __post_init__(self) -> None:
        self._name = secrets.token_hex(4)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._submit, self._call)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.more(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def more(self, count: int) -> None:
        """Wait until so many more tasks were accepted, and so many more calls answered."""
        tasks, calls = len(self.accepted) + count, self.answered + count
        wait_until(
            lambda: len(self.accepted) >= tasks and self.answered >= calls,
            seconds=90,
            what=f"{count} more tasks ({len(self.accepted)} of {tasks}) and calls ({self.answered} of {calls}); "
            f"{self.unanswered[-3:]}",
        )

    def _submit(self) -> None:
        number = 0
        with self.stack.http() as http:
            while not self._stop.is_set():
                number += 1
                task_id = f"tsk_{self._name}_{number:05d}"
                body = {"number": number, "seconds": 0.02, "size": LARGE_BYTES if number % 10 == 3 else 0}
                self._until_accepted(http, task_id, body)
                time.sleep(0.05)

    def _until_accepted(self, http: httpx.Client, task_id: str, body: dict[str, Any]) -> None:
        """Submit under one id until it is acknowledged, as a client does that wants no task twice."""
        while True:
            try:
                reply = http.put(f"/v1/endpoints/{FUNCTION}/tasks/{task_id}", json=body)
                if reply.status_code == httpx.codes.ACCEPTED:
                    self.accepted[task_id] = body["number"]
                    return
                if reply.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                    self.wrong.append(f"{task_id} was refused with {reply.status_code}: {reply.text[:200]}")
                    return
            except httpx.HTTPError:
                pass
            if self._stop.wait(0.05):
                return

    def _call(self) -> None:
        number = 0
        with self.stack.http() as http:
            while not self._stop.is_set():
                number += 1
                try:
                    reply = http.post(f"/v1/endpoints/{FUNCTION}/predict", json={"number": number})
                except httpx.HTTPError as error:
                    self.unanswered.append(f"{type(error).__name__}: {error}")
                    time.sleep(0.05)
                    continue
                if reply.status_code != httpx.codes.OK:
                    self.unanswered.append(f"{reply.status_code}: {reply.text[:200]}")
                elif reply.json()["number"] != number:
                    self.wrong.append(f"call {number} was answered with {reply.text[:100]}")
                else:
                    self.answered += 1
                time.sleep(0.01)

    # -------------------------------------------------------------------------------------------------------- settling
    def assert_nothing_lost(self) -> None:
        """Every accepted task ends, once, with its own result, and every answer was the right one."""
        deadline = time.monotonic() + FINAL_SECONDS
        everything = list(self.accepted.items())

        def check(share: list[tuple[str, int]]) -> None:
            with self.stack.http() as http:
                for task_id, number in share:
                    self._check(http, task_id, number, deadline)

        with ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(check, [everything[start::4] for start in range(4)]))
        assert not self.wrong, "\n".join(self.wrong[:8])

    def _check(self, http: httpx.Client, task_id: str, number: int, deadline: float) -> None:
        task: dict[str, Any] = {}
        while task.get("status") not in FINAL:
            assert time.monotonic() < deadline, f"lost: {task_id} is still {task.get('status')}"
            task = http.get(f"/v1/tasks/{task_id}", params={"wait_seconds": 10}).raise_for_status().json()
        if task["status"] != "succeeded":
            self.wrong.append(f"{task_id} is {task['status']}: {task['error']}")
            return
        result = task.get("result") or http.get(f"/v1/tasks/{task_id}/result").raise_for_status().json()
        if (result["task"], result["number"]) != (task_id, number):
            self.wrong.append(f"{task_id} has the result of {result['task']}")
        events = http.get(f"/v1/tasks/{task_id}/events").raise_for_status().text.splitlines()
        said = [json.loads(line.removeprefix("data:")) for line in events if line.startswith("data:")]
        if sum(event["status"] in FINAL for event in said) != 1:
            self.wrong.append(f"{task_id} did not end once: {said}")
