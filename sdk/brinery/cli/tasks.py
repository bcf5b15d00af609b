"""The commands for tasks: show, list, cancel, and for dead letters: dead, requeue, drop."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from brinery.cli import show
from brinery.errors import BrineryError, InvalidRequestError, NotFoundError
from brinery.spec import TaskStatus

if TYPE_CHECKING:
    from brinery.client import Client

app: Final = typer.Typer(
    help="Look at tasks, cancel them, and deal with dead letters.", no_args_is_help=True, rich_markup_mode=None
)

TaskId = Annotated[str, typer.Argument(metavar="ID", help="The task's id, tsk_….")]
TaskIds = Annotated[list[str], typer.Argument(metavar="ID...", help="The tasks' ids, tsk_….")]
SomeTaskIds = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="The tasks' ids, tsk_….")]
OfEndpoint = Annotated[str | None, typer.Option("--endpoint", "-e", help="Only this endpoint's.")]
Limit = Annotated[int, typer.Option("--limit", "-n", help="How many at most.", min=1)]
All = Annotated[bool, typer.Option("--all", help="All dead letters of --endpoint.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_ENDINGS: Final = {
    TaskStatus.SUCCEEDED: "succeeded",
    TaskStatus.FAILED: "failed",
    TaskStatus.CANCELLED: "been cancelled",
    TaskStatus.EXPIRED: "expired",
}
_SIDE_BY_SIDE: Final = 8
_DEAD_COLUMNS: Final = ("ID", "ENDPOINT", "TRIES", "SUBMITTED", "FAILED", "ERROR")


@app.command("show")
def show_task(
    task_id: TaskId,
    as_json: AsJson = False,
    print_input: Annotated[bool, typer.Option("--input", help="Print what it was given, byte for byte.")] = False,
) -> None:
    """Show a task: its way through the platform, the attempts that failed, its result or its error."""
    client = _client()
    if print_input:
        typer.echo(client.task_input(task_id)[1], nl=False)
        return
    task = client.task(task_id)
    attempts = client.task_attempts(task_id)
    if as_json:
        show.json_text({**task, "attempts": attempts})
        return
    from brinery.cli.timeline import describe

    for line in describe(task, attempts):
        typer.echo(line)


@app.command("list")
def list_tasks(
    endpoint: OfEndpoint = None,
    status: Annotated[
        list[TaskStatus] | None, typer.Option("--status", "-s", help="Only these; may be given several times.")
    ] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List tasks, the last submitted first."""
    found, more = _listed(limit, endpoint=endpoint, status=[each.value for each in status or []] or None)
    if as_json:
        show.json_text(found)
    elif not found:
        typer.echo("There are no such tasks.")
    else:
        show.table(("ID", "ENDPOINT", "STATUS", "ATTEMPT", "CREATED", "FINISHED"), [_row(task) for task in found])
    _say_more(more, limit)


@app.command("dead")
def list_dead(endpoint: OfEndpoint = None, limit: Limit = 50, as_json: AsJson = False) -> None:
    """List dead letters, the last submitted first: tasks that the platform could not run, with their last error."""
    found, more = _listed(limit, endpoint=endpoint, dead=True)
    if as_json:
        show.json_text(found)
    elif not found:
        typer.echo("There are no dead letters.")
    else:
        show.table(_DEAD_COLUMNS, [_dead_row(task) for task in found], cut_last=True)
    _say_more(more, limit)


@app.command("requeue")
def requeue_tasks(
    task_ids: SomeTaskIds = None,
    endpoint: OfEndpoint = None,
    every: All = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Queue failed tasks again, with all their attempts."""
    client = _client()
    ids = _chosen(client, task_ids, endpoint, every)
    _confirm("Queue", "again", ids, yes)
    _each(ids, client.requeue, "queued again", as_json)


@app.command("drop")
def drop_tasks(
    task_ids: SomeTaskIds = None,
    endpoint: OfEndpoint = None,
    every: All = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete final tasks with their inputs and results."""
    client = _client()
    ids = _chosen(client, task_ids, endpoint, every)
    _confirm("Delete", "with inputs and results", ids, yes)
    _each(ids, client.drop, "dropped", as_json)


@app.command("cancel")
def cancel_tasks(task_ids: TaskIds, as_json: AsJson = False) -> None:
    """Cancel tasks, queued or running."""
    client = _client()
    cancelled = []
    for task_id in dict.fromkeys(task_ids):
        before = client.task(task_id)["status"]
        task = client.cancel(task_id)
        cancelled.append(task)
        if as_json:
            continue
        if TaskStatus(before).final:
            typer.echo(f"{task_id} had already {_ENDINGS[before]}; there is nothing to cancel.")
        elif task["status"] == TaskStatus.RUNNING:
            typer.echo(f"{task_id} is being cancelled; `brinery tasks show {task_id}` says when it has stopped.")
        else:
            typer.echo(f"{task_id} is {task['status']}.")
    if as_json:
        show.json_text(cancelled)


def _client() -> Client:
    from brinery.client import default_client

    return default_client()


def _listed(limit: int, **chosen: Any) -> tuple[list[dict[str, Any]], bool]:
    """Return up to `limit` tasks, and whether there are more."""
    client, found, cursor = _client(), list[dict[str, Any]](), None
    while True:
        page = client.task_page(cursor=cursor, limit=min(limit - len(found), 1000), **chosen)
        found += page["tasks"]
        cursor = page["cursor"]
        if cursor is None or len(found) >= limit:
            return found, cursor is not None


def _say_more(more: bool, limit: int) -> None:
    if more:
        typer.echo(f"There are more; these are the first {limit}. See --limit.", err=True)


def _chosen(client: Client, task_ids: list[str] | None, endpoint: str | None, every: bool) -> list[str]:
    """Return the ids that were given, or those of all dead letters of an endpoint."""
    if task_ids and (endpoint or every):
        raise InvalidRequestError("Give either ids, or --endpoint NAME --all.")
    if task_ids:
        return list(dict.fromkeys(task_ids))
    if endpoint is None or not every:
        raise InvalidRequestError("Give the tasks' ids, or --endpoint NAME --all for all its dead letters.")
    ids = [task["id"] for task in client.tasks(endpoint=endpoint, dead=True)]
    if not ids:
        raise NotFoundError(f"{endpoint!r} has no dead letters.")
    return ids


def _confirm(verb: str, ending: str, ids: list[str], yes: bool) -> None:
    if yes or len(ids) == 1:
        return
    question = f"{verb} {len(ids)} tasks {ending}?"
    if not sys.stdin.isatty():
        raise InvalidRequestError(f"Nobody is there to be asked: {question} Add --yes.")
    typer.confirm(question, abort=True)


def _each(ids: list[str], verb: Callable[[str], object], done: str, as_json: bool) -> None:
    """Do something to each task, several at a time; tell what became of them.

    Raises:
        BrineryError: Some could not be done; the others were.
    """
    failed = dict[str, BrineryError]()
    with show.counting(done.capitalize(), len(ids)) as count:
        for task_id, error in _outcomes(ids, verb):
            count()
            if error is not None:
                failed[task_id] = error
    if as_json:
        show.json_text(
            [{"id": one, "done": one not in failed, **(failed[one].to_json() if one in failed else {})} for one in ids]
        )
    elif len(failed) < len(ids):
        typer.echo(f"{ids[0]} is {done}." if len(ids) == 1 else f"{len(ids) - len(failed)} tasks are {done}.")
    if not failed:
        return
    first, error = next(iter(failed.items()))
    if len(ids) == 1:
        raise error
    raise BrineryError(f"{len(failed)} of {len(ids)} could not be {done}; the first, {first}: {error.message}")


def _outcomes(ids: list[str], verb: Callable[[str], object]) -> Iterable[tuple[str, BrineryError | None]]:
    from concurrent.futures import ThreadPoolExecutor

    def outcome(task_id: str) -> tuple[str, BrineryError | None]:
        try:
            verb(task_id)
        except BrineryError as error:
            return task_id, error
        return task_id, None

    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        yield from pool.map(outcome, ids)


def _row(task: dict[str, Any]) -> tuple[Any, ...]:
    attempts = f"{task['attempt']}/{task['max_attempts']}"
    created, finished = show.since(task["created_at"]), show.since(task.get("finished_at"))
    return task["id"], task["endpoint"], task["status"], attempts, created, finished


def _dead_row(task: dict[str, Any]) -> tuple[Any, ...]:
    error = show.error_text(task["error"]).partition("\n")[0] if task.get("error") else ""
    submitted, failed = show.since(task["created_at"]), show.since(task.get("finished_at"))
    return task["id"], task["endpoint"], task["attempt"], submitted, failed, error
