"""The commands for tasks: show, list, cancel."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

import typer

from brinery.cli import show
from brinery.errors import RemoteError, error_from_json
from brinery.spec import TaskStatus

app: Final = typer.Typer(help="Look at tasks and cancel them.", no_args_is_help=True, rich_markup_mode=None)

TaskId = Annotated[str, typer.Argument(metavar="ID", help="The task's id, tsk_….")]
_ENDINGS: Final = {
    TaskStatus.SUCCEEDED: "succeeded",
    TaskStatus.FAILED: "failed",
    TaskStatus.CANCELLED: "been cancelled",
    TaskStatus.EXPIRED: "expired",
}
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("show")
def show_task(task_id: TaskId, as_json: AsJson = False) -> None:
    """Show a task, with its result or its error once it is final."""
    from brinery.client import default_client

    task = default_client().task(task_id)
    if as_json:
        show.json_text(task)
        return
    shown = [field for field, value in task.items() if value is not None or _is_result(field, task)]
    show.table(("", ""), [(field, _cell(field, task[field])) for field in shown])
    error = error_from_json({"error": task.get("error")})
    if isinstance(error, RemoteError) and error.remote_traceback:
        typer.echo(f"\nRemote traceback:\n{error.remote_traceback}")


@app.command("list")
def list_tasks(
    endpoint: Annotated[str | None, typer.Option("--endpoint", "-e", help="Only this endpoint's.")] = None,
    status: Annotated[TaskStatus | None, typer.Option("--status", "-s", help="Only these.")] = None,
    as_json: AsJson = False,
) -> None:
    """List tasks, newest first."""
    from brinery.client import default_client

    found = default_client().tasks(endpoint=endpoint, status=status.value if status else None)
    if as_json:
        show.json_text(found)
    elif not found:
        typer.echo("There are no such tasks.")
    else:
        show.table(("ID", "ENDPOINT", "STATUS", "ATTEMPT", "CREATED", "FINISHED"), [_row(task) for task in found])


@app.command("cancel")
def cancel_task(task_id: TaskId) -> None:
    """Cancel a task, queued or running."""
    from brinery.client import default_client

    client = default_client()
    before = client.task(task_id)["status"]
    after = client.cancel(task_id)["status"]
    if TaskStatus(before).final:
        typer.echo(f"{task_id} had already {_ENDINGS[before]}; there is nothing to cancel.")
    elif after == TaskStatus.RUNNING:
        typer.echo(f"{task_id} is being cancelled; `brinery tasks show {task_id}` says when it has stopped.")
    else:
        typer.echo(f"{task_id} is {after}.")


def _row(task: dict[str, Any]) -> tuple[Any, ...]:
    attempts = f"{task['attempt']}/{task['max_attempts']}"
    created, finished = show.since(task["created_at"]), show.since(task.get("finished_at"))
    return task["id"], task["endpoint"], task["status"], attempts, created, finished


def _is_result(field: str, task: dict[str, Any]) -> bool:
    """Whether the field is a result that is here, which may be None."""
    return field == "result" and bool(task.get("result_inline"))


def _cell(field: str, value: Any) -> Any:
    if field.endswith("_at"):
        return show.at(value)
    if field == "error":
        kind = (value.get("context") or {}).get("exception_type") or value.get("type")
        return f"{kind}: {value.get('message')}"
    return json.dumps(value, ensure_ascii=False) if field == "result" else value
