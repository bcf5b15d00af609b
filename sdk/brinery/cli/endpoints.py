"""The commands for endpoints: deploy, call, submit, logs, list, describe, restart, rollback, delete."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from brinery.calls import CallChoices, Calls
from brinery.cli import show
from brinery.cli.deploying import deploy
from brinery.errors import InvalidRequestError

if TYPE_CHECKING:
    from brinery.client import Client

Name = Annotated[str, typer.Argument(help="The endpoint's name.", show_default=False)]
Pairs = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Arguments; values are JSON, or else text.")
]
Data = Annotated[
    str | None, typer.Option("--data", "-d", help="All arguments as a JSON object; @FILE reads one, @- reads stdin.")
]
Timeout = Annotated[
    float | None, typer.Option("--timeout-seconds", "--timeout", help="Limit of one attempt, in seconds.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def call(
    name: Name,
    pairs: Pairs = None,
    data: Data = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print each item as it comes.")] = False,
    timeout_seconds: Timeout = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it on one line, also on a terminal.")] = False,
) -> None:
    """Call an endpoint and print its result as JSON."""
    calls: Calls[...] = Calls(name, choices={"timeout_seconds": timeout_seconds})
    arguments = _arguments(pairs or [], data)
    if not stream:
        show.json_text(calls.remote(**arguments), compact=as_json)
        return
    for item in calls.stream(**arguments):
        typer.echo(json.dumps(item, ensure_ascii=False))


def submit(
    name: Name,
    pairs: Pairs = None,
    data: Data = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Wait for the result and print it.")] = False,
    priority: Annotated[int | None, typer.Option(help="0 to 9, 9 most urgent; 4 if left out.")] = None,
    max_attempts: Annotated[int | None, typer.Option(help="Attempts before it has failed.")] = None,
    timeout_seconds: Timeout = None,
    expires_in_seconds: Annotated[float | None, typer.Option(help="How many seconds it may wait for a worker.")] = None,
    result_ttl_seconds: Annotated[float | None, typer.Option(help="How many seconds its result is kept.")] = None,
    retry_for: Annotated[
        list[str] | None,
        typer.Option(help="An error to try again on, such as ValueError or 'HTTP 503'; may be given several times."),
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(help='Where its end is told: a URL, or {"url": …, "username": …, "password": …}; @FILE reads it.'),
    ] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key again is the same task.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put a call into an endpoint's queue and print the task's id. What is not chosen is as the endpoint has it."""
    choices: CallChoices = {
        "priority": priority,
        "max_attempts": max_attempts,
        "timeout_seconds": timeout_seconds,
        "expires_in_seconds": expires_in_seconds,
        "result_ttl_seconds": result_ttl_seconds,
        "retry_for": retry_for or None,
        "webhook": _webhook(webhook) if webhook is not None else None,
        "idempotency_key": idempotency_key,
    }
    calls: Calls[...] = Calls(name, choices=choices)
    future = calls.submit(**_arguments(pairs or [], data))
    if wait:
        show.json_text(future.get())
    elif as_json:
        show.json_text(future.record())
    else:
        typer.echo(future.id)


def logs(
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with each new line.")] = False,
    tail: Annotated[int, typer.Option("--tail", "-n", help="How many lines to begin with.", min=0)] = 200,
) -> None:
    """Print what the workers of an endpoint have written."""
    for line in _client().logs(name, tail=tail, follow=follow):
        typer.echo(line)


def list_endpoints(as_json: AsJson = False) -> None:
    """List your endpoints."""
    found = _client().endpoints()
    if as_json:
        show.json_text(found)
    elif not found:
        typer.echo("There are no endpoints yet; deploy one with `brinery deploy FILE`.")
    else:
        columns = ("NAME", "STATUS", "VERSION", "WORKERS", "UPDATED", "REASON")
        show.table(columns, [_row(endpoint) for endpoint in found])


def describe(name: Name, as_json: AsJson = False) -> None:
    """Show an endpoint, its settings and its versions."""
    from brinery.routes import endpoint_path

    client = _client()
    url = f"{client.url}{endpoint_path(name, 'predict')}"
    (found,) = show.with_usage(lambda: [client.endpoint(name)])
    endpoint = {**found, "url": url, "versions": client.versions(name)}
    if as_json:
        show.json_text(endpoint)
        return
    shown = ("name", "url", "id", "owner", "status", "reason", "wanted_version", "serving_version")
    rows = [(field.replace("_", " "), endpoint[field]) for field in shown if endpoint.get(field) not in {None, ""}]
    workers = [f"{worker['id']} {show.usage_text(worker, endpoint['spec'])}".strip() for worker in endpoint["workers"]]
    rows += [("workers" if not place else "", line) for place, line in enumerate(workers or ["none"])]
    rows += [(field, value) for field, value in endpoint["spec"].items() if field != "name"]
    image = endpoint.get("image") or {}
    rows += [(f"image {field}", value) for field, value in image.items() if value not in (None, "", [])]
    show.table(("", ""), rows)
    typer.echo()
    columns = ("VERSION", "STATUS", "CREATED", "REASON")
    versions = endpoint["versions"]
    show.table(columns, [(v["number"], v["status"], show.at(v["created_at"]), v["reason"]) for v in versions])


def restart(name: Name) -> None:
    """Replace every worker of an endpoint, without a pause."""
    _client().restart(name)
    typer.echo(f"{name} is restarting; `brinery describe {name}` shows how it goes.")


def rollback(name: Name, version: Annotated[int, typer.Argument(help="Number of an earlier version.", min=1)]) -> None:
    """Serve an earlier version of an endpoint again."""
    endpoint = _client().rollback(name, version)
    typer.echo(
        f"{name} goes back to version {version}, as version {endpoint['wanted_version']}; "
        f"`brinery describe {name}` shows how it goes."
    )


def delete(name: Name, yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False) -> None:
    """Delete an endpoint with all its versions."""
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidRequestError(f"Nobody is there to be asked whether to delete {name!r}; add --yes.")
        typer.confirm(f"Delete {name!r}, its versions and its queued tasks?", abort=True)
    _client().delete_endpoint(name)
    typer.echo(f"{name} is being deleted.")


COMMANDS: Final[dict[str, Callable[..., None]]] = {
    "deploy": deploy,
    "call": call,
    "submit": submit,
    "logs": logs,
    "list": list_endpoints,
    "describe": describe,
    "restart": restart,
    "rollback": rollback,
    "delete": delete,
}


def _client() -> Client:
    from brinery.client import default_client

    return default_client()


def _row(endpoint: dict[str, Any]) -> tuple[Any, ...]:
    version = endpoint["serving_version"] or "-"
    if endpoint["wanted_version"] != endpoint["serving_version"]:
        version = f"{version} → {endpoint['wanted_version']}"
    workers = len(endpoint["workers"])
    reason = (endpoint["reason"] or "").partition("\n")[0]
    return endpoint["name"], endpoint["status"], version, workers, show.since(endpoint["updated_at"]), reason


def _arguments(pairs: list[str], data: str | None) -> dict[str, Any]:
    """Return a call's arguments; ``key=value`` wins over the same key in the data."""
    arguments = _read_data(data) if data is not None else {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise InvalidRequestError(f"{pair!r} is no argument; write key=value, or --data with a JSON object.")
        try:
            arguments[key] = json.loads(text)
        except ValueError:
            arguments[key] = text
    return arguments


def _webhook(given: str) -> Any:
    text = _read("--webhook", given).strip()
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError:
        raise InvalidRequestError("--webhook is not JSON; give a URL, or an object with url and username.") from None


def _read(option: str, given: str) -> str:
    """Return what an option holds, from a file where it says so."""
    if given == "@-":
        return sys.stdin.read()
    if not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"{option} {given}: {error}.") from None


def _read_data(data: str) -> dict[str, Any]:
    data = _read("--data", data)
    try:
        arguments = json.loads(data)
    except ValueError as error:
        raise InvalidRequestError(f"--data is not JSON: {error}.") from None
    if not isinstance(arguments, dict):
        raise InvalidRequestError(f"--data is a JSON {type(arguments).__name__}; give an object of arguments.")
    return arguments
