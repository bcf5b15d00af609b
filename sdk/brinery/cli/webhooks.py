"""The commands for webhooks: the secret that they are signed with."""

from __future__ import annotations

from typing import Final

import typer

app: Final = typer.Typer(help="Receive the ends of tasks.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def webhooks() -> None:
    """Receive the ends of tasks."""


@app.command("secret")
def show_secret() -> None:
    """Print the secret that your webhooks are signed with."""
    from brinery.client import default_client
    from brinery.routes import Request

    typer.echo(default_client().send(Request(method="GET", path="/v1/webhooks/secret")).json()["secret"])
