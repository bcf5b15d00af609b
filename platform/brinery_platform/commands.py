"""The CLI's commands for whoever runs the box: `up`, `down` and `status`; the SDK's CLI finds them by entry point."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from brinery.errors import AuthenticationError, BrineryError, UnavailableError, UpstreamTimeoutError
from brinery_platform import images_cli, volumes_cli
from brinery_platform.cli_options import Home

if TYPE_CHECKING:
    from brinery_platform.runtimes.base import Running
    from brinery_platform.settings import Settings

DETACHED_READY_SECONDS: Final = 120.0
DOWN_SECONDS: Final = 120.0


def register(app: typer.Typer) -> None:
    """Add the commands to the CLI; called by ``brinery.cli`` for the entry point group ``brinery.commands``."""
    app.command()(up)
    app.command()(down)
    app.command()(setup)
    app.command()(status)
    images_cli.register(app)
    volumes_cli.register(app)


def up(
    home: Home = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [BRINERY_HOST, 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. [BRINERY_PORT, 5050]")] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when it is ready, and leave it running.")
    ] = False,
) -> None:
    """Start the whole platform on this machine."""
    from brinery_platform.settings import read_settings
    from brinery_platform.up_record import UpRecord

    settings = read_settings(home=home, host=host, port=port)
    running = UpRecord.read(settings.home)
    if running is not None:
        typer.echo(_describe(running.pid, running.url, running.started_at))
        return
    if detach:
        _detach(settings.home, settings.host, settings.port)
    else:
        from brinery_platform.up import Up

        Up(settings, lambda line: typer.echo(line, err=False)).run()


def down(home: Home = None) -> None:
    """Stop the platform and every worker; queued tasks and all data stay."""
    from brinery_platform.runtimes.detached import is_alive, state_of
    from brinery_platform.settings import read_settings
    from brinery_platform.up_record import UpRecord, lock_held

    settings = read_settings(home=home)
    record = UpRecord.read(settings.home)
    if record is not None:
        process = state_of(record.pid)
        os.kill(record.pid, signal.SIGTERM)
        deadline = time.monotonic() + DOWN_SECONDS
        while lock_held(settings.home) or (process is not None and is_alive(process.identity)):
            if time.monotonic() > deadline:
                raise UnavailableError(f"`brinery up` (pid {record.pid}) has not ended after {DOWN_SECONDS:g} s.")
            time.sleep(0.05)
        typer.echo("Brinery is down.")
    elif settings.home.exists() and _stop_leftovers(settings):
        typer.echo("Stopped what a killed `brinery up` had left.")
    else:
        typer.echo("Brinery is not running.")


def _stop_leftovers(settings: Settings) -> bool:
    """Stop what runs in a home without an `up`; return whether there was anything."""
    from brinery_platform.embedded_redis import EmbeddedRedis
    from brinery_platform.runtimes.choice import in_force
    from brinery_platform.services import connect
    from brinery_platform.up import answering_runtime, stop_everything

    services = connect(in_force(settings))
    redis = EmbeddedRedis(settings.home)
    services.runtime = answering_runtime(services, typer.echo)
    found = bool(services.runtime.list()) or redis.running()
    stop_everything(services, typer.echo)
    redis.stop()
    return found


def setup(
    home: Home = None,
    wait: Annotated[float, typer.Option(help="Seconds that Redis, objects and database may take to answer.")] = 60.0,
) -> None:
    """Prepare what gateway and controller need where no `up` starts them: database, bucket, an administrator's key."""
    from brinery_platform.preparation import set_up
    from brinery_platform.services import connect
    from brinery_platform.settings import read_settings

    set_up(connect(read_settings(home=home)), typer.echo, wait_seconds=wait)


def status(
    home: Home = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what runs: the platform's processes, the workers, and every endpoint of yours."""
    from brinery_platform.runtimes.choice import in_force
    from brinery_platform.services import connect
    from brinery_platform.settings import read_settings
    from brinery_platform.up import answering_runtime
    from brinery_platform.up_record import UpRecord

    settings = in_force(read_settings(home=home))
    record = UpRecord.read(settings.home)
    found: list[Running] = []
    if settings.home.exists():
        runtime = answering_runtime(connect(settings), lambda line: typer.echo(line, err=True))
        found = runtime.list()
        runtime.close()
    url: str | None = None
    endpoints: list[dict[str, Any]] = []
    if record is not None:
        url, endpoints = record.url, _endpoints(settings.home)
    elif home is None and not found:  # else what is left of a platform here would be taken for one elsewhere
        url, endpoints = _elsewhere()
    if as_json:
        data: dict[str, Any] = {
            "running": url is not None,
            "url": url,
            "pid": record.pid if record else None,
            "runtime": settings.runtime if record else None,
            "processes": [
                {"id": item.id, "kind": item.kind, "endpoint_id": item.endpoint_id, "started_at": item.started_at}
                for item in found
            ],
            "endpoints": endpoints,
        }
        typer.echo(json.dumps(data, indent=2))
    else:
        if record is not None:
            typer.echo(_describe(record.pid, record.url, record.started_at))
            typer.echo(f"Workers run as {'containers' if settings.runtime == 'docker' else 'processes'}.")
        elif url is not None:
            typer.echo(f"`brinery up` runs nothing here; the platform at {url} answers.")
        else:
            typer.echo("Brinery is not running; start it with `brinery up`.")
        _print_tables(found, endpoints)
    if url is None:
        raise typer.Exit(1)


def _print_tables(found: list[Running], endpoints: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from brinery.cli import show

    console = Console()
    names = {endpoint["id"]: endpoint["name"] for endpoint in endpoints}
    used = {
        worker["id"]: show.usage_text(worker, endpoint["spec"])
        for endpoint in endpoints
        for worker in endpoint["workers"]
    }
    if found:
        table = Table("Process", "Kind", "Endpoint", "Up for", "Uses", box=None)
        for item in sorted(found, key=lambda item: (item.kind, item.endpoint_id, item.started_at)):
            endpoint = names.get(item.endpoint_id, item.endpoint_id)
            up_for = _duration(time.time() - item.started_at)
            table.add_row(item.id, item.kind, endpoint, up_for, used.get(item.id, ""))
        console.print(table)
    elif used:
        table = Table("Worker", "Endpoint", "Uses", box=None)
        for endpoint in endpoints:
            for worker in endpoint["workers"]:
                table.add_row(worker["id"], endpoint["name"], used[worker["id"]])
        console.print(table)
    if endpoints:
        table = Table("Endpoint", "Status", "Version", "Workers", "Reason", box=None)
        for endpoint in endpoints:
            table.add_row(
                endpoint["name"],
                endpoint["status"],
                str(endpoint["serving_version"] or "-"),
                str(len(endpoint["workers"])),
                endpoint["reason"].splitlines()[0] if endpoint["reason"] else "",
            )
        console.print(table)


def _endpoints(home: Path) -> list[dict[str, Any]]:
    from brinery.cli import show
    from brinery.client import Client
    from brinery.config import read_profile

    profile = read_profile(home)
    if profile is None:
        return []
    try:
        return show.with_usage(Client(profile.url, profile.api_key).endpoints)
    except BrineryError:
        return []


def _elsewhere() -> tuple[str | None, list[dict[str, Any]]]:
    """Return the URL and the endpoints of the platform that this user's commands go to, if it answers.

    Raises:
        BrineryError: It answers with an error.
    """
    from brinery.cli import show
    from brinery.client import default_client

    try:
        client = default_client()
    except AuthenticationError:  # nobody has ever called one from here
        return None, []
    try:
        return client.url, show.with_usage(client.endpoints)
    except (UnavailableError, UpstreamTimeoutError):
        return None, []


def _detach(home: Path, host: str, port: int) -> None:
    """Run `up` in a session of its own, and wait until it is ready or has ended."""
    from brinery_platform.up_record import UpRecord

    (home / "logs").mkdir(parents=True, exist_ok=True, mode=0o700)
    path = home / "logs" / "up.log"
    with path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "brinery.cli", "up", "--home", str(home), "--host", host, "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    shown = 0
    deadline = time.monotonic() + DETACHED_READY_SECONDS
    while True:
        ended = process.poll()
        lines = path.read_text(errors="replace").splitlines()
        record = UpRecord.read(home)
        if ended is not None:
            raise UnavailableError(
                lines[-1].removeprefix("Error: ") if lines else f"`brinery up` ended with exit code {ended}."
            )
        for line in lines[shown:]:
            typer.echo(line)
            deadline = time.monotonic() + DETACHED_READY_SECONDS  # it goes on: the first base takes its time
        shown = len(lines)
        if record is not None and record.ready and record.pid == process.pid:
            return
        if time.monotonic() > deadline:
            raise UnavailableError(f"Not ready after {DETACHED_READY_SECONDS:g} s; see {path}.")
        time.sleep(0.05)


def _describe(pid: int, url: str, started_at: float) -> str:
    return f"Brinery runs at {url} (pid {pid}, up for {_duration(time.time() - started_at)})."


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
