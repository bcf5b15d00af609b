"""The CLI's `volumes`: what images of owners keep on this machine, and removing it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brinery.errors import ConflictError, NotFoundError
from brinery_platform.cli_options import Home

if TYPE_CHECKING:
    from brinery_platform.runtimes.docker.volumes import Volumes


def register(app: typer.Typer) -> None:
    """Add `volumes` to the CLI."""
    volumes = typer.Typer(no_args_is_help=True, help="Volumes of images; no endpoint's end removes one.")
    volumes.command("list")(show)
    volumes.command("remove")(remove)
    app.add_typer(volumes, name="volumes")


def show(
    home: Home = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show every volume of this home."""
    found = _volumes(home).list()
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(one) for one in found], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("Volume", "Owner", "Containers", "Created", box=None)
    for one in found:
        table.add_row(one.name, one.owner, str(one.containers), one.created_at)
    Console().print(table)


def remove(
    name: Annotated[str, typer.Argument(help="The volume's name.", show_default=False)],
    owner: Annotated[str, typer.Option(help="Whose it is, where several owners have one of this name.")] = "",
    home: Home = None,
) -> None:
    """Remove a volume with all that is in it; one that a container uses stays."""
    volumes = _volumes(home)
    owners = [one.owner for one in volumes.list(name=name)]
    if not owner and len(owners) > 1:
        raise ConflictError(f"Several owners have a volume {name!r}: {', '.join(owners)}; say --owner.")
    if not owner and not owners:
        raise NotFoundError(f"There is no volume {name!r}; `brinery volumes list` shows all.", volume=name)
    volumes.remove(owner or owners[0], name)
    typer.echo(f"Removed {name}.")


def _volumes(home: Path | None) -> Volumes:
    from brinery_platform.runtimes.detached import home_mark
    from brinery_platform.runtimes.docker.engine import Engine
    from brinery_platform.runtimes.docker.volumes import Volumes
    from brinery_platform.settings import read_settings

    settings = read_settings(home=home)
    return Volumes(Engine(), home_mark(settings.home), settings.home / "run" / "volumes.lock")
