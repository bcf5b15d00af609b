"""The ledger of a fault: what became of every task that was accepted, held against what really ran."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx
from fault_load import Load, Wanted
from fault_stack import FaultStack, executions, path_of

PATIENCE_VARIABLE = "FAULT_PATIENCE_SECONDS"
PATIENCE_SECONDS = float(os.environ.get(PATIENCE_VARIABLE, "90"))
"""How long after the fault the last task may take to become final; what is not by then counts as lost."""
FINAL = {"succeeded", "failed", "cancelled", "expired"}
SHOWN = 8


@dataclass
class Ledger:
    """What one fault did to the tasks of one load.

    Args:
        fault: Its name in the table.
        submitted: Tasks that were accepted.
        refused: Submissions answered with an error, and those without any answer.
        finished: Accepted tasks that became final.
        lost: Accepted tasks that did not.
        twice: Tasks whose function began more than once.
        violations: What must not be, in words.
        statuses: How many tasks ended how.
        recovery_seconds: From the fault, or its end, to the first completion of an attempt that began after it.
        total_seconds: Of the whole fault with its load.
    """

    fault: str
    submitted: int = 0
    refused: int = 0
    finished: int = 0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    recovery_seconds: float | None = None
    total_seconds: float = 0.0

    def __str__(self) -> str:
        recovery = "-" if self.recovery_seconds is None else f"{self.recovery_seconds:.2f} s"
        return (
            f"{self.fault}: submitted {self.submitted}, refused {self.refused}, finished {self.finished}, "
            f"lost {len(self.lost)}, executed twice {len(self.twice)}, {self.statuses}, running again after {recovery}"
        )


LEDGERS: list[Ledger] = []
"""Of this process, in the order of the tests."""


@dataclass(frozen=True)
class _Found:
    """What the API says of one task."""

    view: dict[str, Any] | None
    ends: int = 0
    result: Any = None


def settle(load: Load, fault: str, at: float, *, patience_seconds: float = PATIENCE_SECONDS) -> Ledger:
    """Wait for every task of a load to be final, read its record, its events and its result, and add up.

    Args:
        load: Its submissions are over.
        fault: Name for the table.
        at: When the fault was over, or the process killed; from there the recovery counts.
        patience_seconds: For all of them together.
    """
    deadline = time.monotonic() + patience_seconds
    candidates = [*load.accepted, *load.unacknowledged, *load.refused]
    with ThreadPoolExecutor(max_workers=3) as pool:
        shares = [candidates[start::3] for start in range(3)]
        found = {
            task_id: one
            for share in pool.map(lambda share: _read(load.stack, share, deadline), shares)
            for task_id, one in share.items()
        }
    ran = executions(load.stack.executions)
    ledger = Ledger(fault, submitted=len(load.accepted), refused=len(load.refused) + len(load.unacknowledged))
    statuses: Counter[str] = Counter()
    for task_id in candidates:
        view = found[task_id].view
        if task_id in load.accepted:
            if view is None or view["status"] not in FINAL:
                ledger.lost.append(f"{task_id} ({view['status'] if view else 'unknown'})")
                continue
            ledger.finished += 1
            statuses[view["status"]] += 1
        if view is not None:
            _check(ledger, task_id, load.wanted[task_id], found[task_id], ran.get(task_id, []))
    ledger.statuses = dict(statuses)
    views = [one.view for one in found.values() if one.view is not None and (one.view["started_at"] or 0.0) > at]
    ledger.recovery_seconds = min((view["finished_at"] - at for view in views if view["finished_at"]), default=None)
    ledger.total_seconds = time.time() - load.started_at
    return ledger


def assert_nothing_lost(
    ledger: Ledger, *, twice_allowed: bool = True, within_seconds: float | None = None, recovers: bool = True
) -> None:
    """Keep the ledger's row for the end of the run, and fail when anything in it must not be.

    Args:
        ledger: From `settle`.
        twice_allowed: Whether something died that may have been in the middle of a task; a second execution then
            needs an attempt that was counted. Otherwise there must be none at all.
        within_seconds: How soon after the fault something must have been completed again.
        recovers: Whether anything was left to be completed after the fault.
    """
    if ledger.lost:
        ledger.violations.append(f"{len(ledger.lost)} lost")
    if ledger.twice and not twice_allowed:
        ledger.violations.append(f"{len(ledger.twice)} executed twice although nothing died that ran them")
    if recovers and ledger.recovery_seconds is None:
        ledger.violations.append("nothing was completed after the fault")
    elif within_seconds is not None and (ledger.recovery_seconds or 0.0) > within_seconds:
        ledger.violations.append(f"running again only after {ledger.recovery_seconds:.1f} s")
    LEDGERS.append(ledger)
    assert not ledger.violations, f"{ledger}\n" + "\n".join([*ledger.violations[:SHOWN], *ledger.lost[:SHOWN]])


# ------------------------------------------------------------------------------------------------------------ each task
def _check(ledger: Ledger, task_id: str, wanted: Wanted, found: _Found, ran: list[dict[str, Any]]) -> None:
    view = found.view
    assert view is not None
    if view["status"] not in FINAL:
        ledger.violations.append(f"{task_id}, which was not acknowledged, stays {view['status']}")
        return
    if found.ends != 1:
        ledger.violations.append(f"{task_id} ended {found.ends} times")
    if view["status"] != wanted.status:
        reason = (view["error"] or {}).get("message", "")
        ledger.violations.append(f"{task_id} is {view['status']} instead of {wanted.status}: {reason}")
    begun = sorted(entry["attempt"] for entry in ran if entry["what"] == "begun")
    if len(begun) > 1:
        ledger.twice.append(task_id)
        counted = all(first < second for first, second in pairwise(begun)) and begun[-1] <= view["attempt"]
        if not counted:
            ledger.violations.append(f"{task_id} ran as attempts {begun}, of which the record counts {view['attempt']}")
    if view["status"] == "succeeded":
        if not any(entry["what"] == "ended" for entry in ran):
            ledger.violations.append(f"{task_id} has succeeded and never ran to its end")
        attempt = found.result.get("attempt", 0) if isinstance(found.result, dict) else 0
        right = {"task": task_id, "attempt": attempt, "filling": "x" * wanted.size}
        if found.result != right or not 1 <= attempt <= view["attempt"]:
            ledger.violations.append(f"{task_id} has another result: {str(found.result)[:100]}")


def _read(stack: FaultStack, task_ids: Iterable[str], deadline: float) -> dict[str, _Found]:
    found = {}
    with stack.http() as client:
        for task_id in task_ids:
            found[task_id] = _read_one(client, task_id, deadline)
    return found


def _read_one(client: httpx.Client, task_id: str, deadline: float) -> _Found:
    path = path_of(task_id)
    view: dict[str, Any] | None = None
    while True:
        left = deadline - time.monotonic()
        try:
            reply = client.get(path, params={"wait_seconds": max(0.0, min(10.0, left))})
            if reply.status_code == http.HTTPStatus.NOT_FOUND:
                return _Found(None)
            view = reply.raise_for_status().json()
            if view["status"] in FINAL:
                return _Found(view, _ends(client, path), _result(client, path, view))
        except httpx.HTTPError:
            time.sleep(0.1)
        if left <= 0:
            return _Found(view)


def _ends(client: httpx.Client, path: str) -> int:
    """Count the final events of a task's own stream."""
    said = client.get(f"{path}/events").raise_for_status().text.splitlines()
    events = [json.loads(line.removeprefix("data:")) for line in said if line.startswith("data:")]
    return sum(event["status"] in FINAL for event in events)


def _result(client: httpx.Client, path: str, view: dict[str, Any]) -> Any:
    if view["status"] != "succeeded":
        return None
    return client.get(f"{path}/result").raise_for_status().json()
