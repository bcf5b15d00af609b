"""A task as ``brinery tasks show`` tells it: what it is, then its way through the platform from top to bottom."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import typer

from brinery.cli import show
from brinery.errors import RemoteError, error_from_json
from brinery.spec import TaskStatus

PHASES: Final = ("queued", "claimed", "sent", "answered", "stored", "finished")
_CHARGES: Final = {"none": "not counted: it never began", "spared": "not counted: it was not at fault"}
_INDENT: Final = "      "


@dataclass(frozen=True, kw_only=True)
class _Moment:
    at: float
    name: str
    details: tuple[str, ...] = ()


def describe(task: dict[str, Any], attempts: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines that tell about a task.

    Args:
        task: Its record, as the API shows it.
        attempts: Those that did not succeed, oldest first.
    """
    facts = [(name, value) for name, value in _facts(task) if value is not None]
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        yield f"{name:<{width}}  {value}"
    moments = _moments(task, attempts)
    if moments:
        yield ""
        yield typer.style("timeline", bold=True)
        yield _moment(moments[0], None)
        yield from _details(moments[0])
        for before, moment in pairwise(moments):
            yield _moment(moment, moment.at - before.at)
            yield from _details(moment)
    error = error_from_json({"error": task.get("error")})
    if isinstance(error, RemoteError) and error.remote_traceback:
        yield f"\nRemote traceback:\n{error.remote_traceback}"


def _facts(task: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    final = TaskStatus(task["status"]).final
    yield "id", task["id"]
    yield "endpoint", task.get("endpoint")
    yield "status", typer.style(task["status"], fg=_colour(task["status"]))
    yield "attempt", f"{task['attempt']} of {task['max_attempts']}" if "max_attempts" in task else None
    yield "priority", task.get("priority")
    yield "retry for", ", ".join(task.get("retry_for") or []) or None
    yield "next attempt", show.at(task["not_before"]) if task.get("not_before") and not final else None
    yield "expires", show.at(task["expires_at"]) if task.get("expires_at") and not final else None
    yield "webhook", _webhook(task["webhook"]) if task.get("webhook") else None
    yield "input", f"brinery tasks show {task['id']} --input"
    if task.get("error"):
        yield "error", show.error_text(task["error"])
    elif task.get("result_inline"):
        yield "result", json.dumps(task.get("result"), ensure_ascii=False)
    elif task["status"] == TaskStatus.SUCCEEDED:
        yield "result", f"{task.get('result_type') or 'bytes'}: GET /v1/tasks/{task['id']}/result"


def _webhook(state: dict[str, Any]) -> str:
    """Say where a webhook goes and how far it has come."""
    text = f"{state['url']}: {state['status']}" if state.get("url") else str(state["status"])
    if tries := state.get("attempts"):
        text += f" after {tries} {'try' if tries == 1 else 'tries'}"
    if state["status"] == "delivered":
        return f"{text}, {show.at(state.get('delivered_at'))}"
    if last := state.get("last_error") or (state.get("last_status") and f"HTTP {state['last_status']}"):
        text += f"; last: {last}"
    return f"{text}; next try {show.at(state['next_at'])}" if state.get("next_at") else text


def _moments(task: dict[str, Any], attempts: list[dict[str, Any]]) -> list[_Moment]:
    """Return what happened when, first things first; the phases are those of the last attempt."""
    phases = task.get("phases") or {}
    passed = [_Moment(at=phases[name], name=name) for name in PHASES if phases.get(name) is not None]
    earlier, last = list[_Moment](), list[_Moment]()
    for attempt in attempts:
        if (ended_at := attempt.get("ended_at") or attempt.get("started_at")) is None:
            continue
        moment = _Moment(at=ended_at, name=f"attempt {attempt['attempt']} failed", details=tuple(_failure(attempt)))
        over = attempt["attempt"] < task["attempt"] or task["status"] == TaskStatus.QUEUED
        (earlier if over else last).append(moment)
    created = [_Moment(at=task["created_at"], name="created")] if task.get("created_at") else []
    finished = [passed.pop()] if passed and passed[-1].name == "finished" else []
    # What happened at the same time stays in this order.
    return sorted(created + earlier + passed + last + finished, key=lambda moment: moment.at)


def _failure(attempt: dict[str, Any]) -> Iterator[str]:
    worker = f" on {attempt['worker_id']}" if attempt.get("worker_id") else ""
    charge = _CHARGES.get(attempt.get("charge") or "")
    yield f"{attempt.get('reason') or 'unknown'}{worker}{f' ({charge})' if charge else ''}"
    if attempt.get("error"):
        yield show.error_text(attempt["error"]).partition("\n")[0]
    for line in (attempt.get("log_tail") or "").splitlines():
        yield f"| {line}"


def _moment(moment: _Moment, seconds: float | None) -> str:
    since = "" if seconds is None else f"+{seconds * 1000:,.0f} ms"
    return f"  {moment.name:<18}{show.at(moment.at, milliseconds=True)}{since:>16}".rstrip()


def _details(moment: _Moment) -> Iterator[str]:
    for detail in moment.details:
        yield f"{_INDENT}{detail}"


def _colour(status: str) -> str | None:
    if status == TaskStatus.SUCCEEDED:
        return typer.colors.GREEN
    return typer.colors.RED if TaskStatus(status).final else typer.colors.YELLOW
