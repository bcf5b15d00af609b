"""What the commands print: data on stdout, as JSON or as a table; progress on stderr, live on a terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import typer


def json_text(data: Any, *, compact: bool = False) -> None:
    """Print JSON, readable on a terminal and on one line elsewhere."""
    indent = 2 if sys.stdout.isatty() and not compact else None
    typer.echo(json.dumps(data, ensure_ascii=False, indent=indent))


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows under their columns' names, if these have any."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(*columns, box=None, pad_edge=False, show_header=any(columns))
    for row in rows:
        shown.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    # Elsewhere than on a terminal nothing is cut off: lines are for grep.
    Console(width=None if sys.stdout.isatty() else 1000).print(shown)


@contextmanager
def progress(title: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give a function that shows an event of a deployment: above a live line on a terminal, else one line each."""
    if not sys.stderr.isatty():
        yield lambda event: typer.echo(f"{title}: {event['text']}", err=True)
        return
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    with console.status(escape(title)) as live:

        def show(event: dict[str, Any]) -> None:
            console.print(event["text"], style="dim" if event["kind"] == "build" else "", markup=False, highlight=False)
            if event["kind"] == "status":
                live.update(escape(f"{title}: {event['text']}"))

        yield show


def at(epoch_seconds: float | None) -> str:
    """Return a time in the local zone, empty for None."""
    if epoch_seconds is None:
        return ""
    return datetime.fromtimestamp(epoch_seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def since(epoch_seconds: float | None) -> str:
    """Return how long ago a time was, in its largest unit."""
    if epoch_seconds is None:
        return ""
    seconds = max(0.0, time.time() - epoch_seconds)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
