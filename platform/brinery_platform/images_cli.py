"""The CLI's `images`: make a base, see what the Docker engine holds of ours, remove what nobody needs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brinery_platform.cli_options import Home

if TYPE_CHECKING:
    from brinery_platform.images.inventory import Image, Inventory
    from brinery_platform.settings import Settings


def register(app: typer.Typer) -> None:
    """Add `images` to the CLI."""
    images = typer.Typer(no_args_is_help=True, help="Images that workers in containers start from.")
    images.command("bootstrap")(bootstrap)
    images.command("list")(show)
    images.command("prune")(prune)
    app.add_typer(images, name="images")


def bootstrap(
    python: Annotated[str, typer.Option(help="Minor version, such as 3.11. [the platform's own]")] = "",
    home: Home = None,
) -> None:
    """Make a base image of this machine's own Python, for which no registry is needed."""
    from brinery_platform.environments import PLATFORM_PYTHON
    from brinery_platform.images.environments import open_environments
    from brinery_platform.settings import index_environment

    environments = open_environments(_settings(home), index_environment())
    try:
        environments.bootstrap(python or PLATFORM_PYTHON, typer.echo)
    finally:
        environments.close()


def show(
    home: Home = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show every image of ours in the Docker engine."""
    found = _inventory(_settings(home)).images()
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(one) for one in found], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("Image", "Kind", "MiB", "Containers", "Made by", box=None)
    for one in found:
        made_by = "this home" if one.own else "another home"
        table.add_row(_short(one), one.kind, str(one.bytes // 2**20), str(one.containers), made_by)
    Console().print(table)


def prune(home: Home = None) -> None:
    """Remove images of this home that no endpoint needs; what is needed again is built again."""
    from brinery_platform.images.references import References
    from brinery_platform.runtimes.detached import home_mark
    from brinery_platform.runtimes.docker.engine import Engine

    settings = _settings(home)
    needed = _needed(settings)
    removed = [_short(one) for one in _inventory(settings).prune(needed=needed)]
    removed += References(Engine(), home_mark(settings.home)).prune(needed=needed)
    for one in removed:
        typer.echo(f"Removed {one}")
    typer.echo(f"{len(removed)} images removed.")


def _settings(home: Path | None) -> Settings:
    from brinery_platform.settings import read_settings

    return read_settings(home=home)


def _inventory(settings: Settings) -> Inventory:
    from brinery_platform.images.inventory import Inventory
    from brinery_platform.runtimes.detached import home_mark
    from brinery_platform.runtimes.docker.engine import Engine

    return Inventory(Engine(), home_mark(settings.home))


def _needed(settings: Settings) -> set[str]:
    """Return the environments that endpoints serve with, or are being deployed with, and the images of all versions.

    An environment is built again when somebody goes back to it; a user's image might be nowhere else.
    """
    from brinery_platform.database import migrate
    from brinery_platform.images.environments import IMAGE_ID_CHARS
    from brinery_platform.services import connect

    if not settings.home.exists():
        return set()
    migrate(settings.database)
    store = connect(settings).store
    needed = set()
    for row in store.endpoints():
        for version in store.versions(row.id):
            known = store.environment(version.environment_key)
            if known is not None and (
                version.number in {row.serving_version, row.wanted_version}
                or len(known.environment_id) == IMAGE_ID_CHARS
            ):
                needed.add(known.environment_id)
    return needed


def _short(image: Image) -> str:
    """Return an image's name as a line has room for it."""
    repository, _, tag = image.name.partition(":")
    return f"{repository}:{tag[:34]}" if repository else image.id.removeprefix("sha256:")[:12]
