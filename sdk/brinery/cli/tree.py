"""The tree of commands: the SDK's own, and those that the platform brings by the entry-point group."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Final

import typer

from brinery.cli import endpoints, tasks, webhooks
from brinery.errors import BrineryError

COMMANDS: Final = "brinery.commands"
"""Entry-point group; each entry is a function ``register(app: typer.Typer) -> None``."""
PLATFORM_COMMANDS: Final = ("up", "down", "status", "doctor")
PLATFORM_HINT: Final = "This installation has no platform; install it with: pip install 'brinery[platform]'"


def build(command: str = "") -> typer.Typer:
    """Return the application.

    Args:
        command: The command that will run. The platform's are loaded for those that are not the SDK's own, so that the
            others start fast.
    """
    app = typer.Typer(
        name="brinery",
        help="Turn Python functions and models into services.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # rich takes longer to import than all the rest, and would eat "brinery[platform]"
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    own = endpoints.COMMANDS
    for name, function in own.items():
        app.command(name)(function)
    app.add_typer(tasks.app, name="tasks")
    app.add_typer(webhooks.app, name="webhooks")
    if command not in own and command not in {"tasks", "webhooks"}:
        _add_platform(app)
    return app


def _add_platform(app: typer.Typer) -> None:
    found = False
    for entry_point in entry_points(group=COMMANDS):
        try:
            entry_point.load()(app)
        except ModuleNotFoundError:
            continue  # its code is there and what it needs is not
        found = True
    if not found:
        for name in PLATFORM_COMMANDS:
            app.command(name, help=PLATFORM_HINT, context_settings=_ANY)(_missing(name))


_ANY: Final = {"allow_extra_args": True, "ignore_unknown_options": True}


def _missing(name: str) -> Callable[[], None]:
    def command() -> None:
        raise BrineryError(f"`brinery {name}` is not here. {PLATFORM_HINT}")

    return command
