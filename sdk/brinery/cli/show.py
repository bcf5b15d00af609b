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

USAGE_SECONDS = 3.0
"""How long a command waits for what workers use; it shows everything else without."""


def json_text(data: Any, *, compact: bool = False) -> None:
    """Print JSON, readable on a terminal and on one line elsewhere."""
    indent = 2 if sys.stdout.isatty() and not compact else None
    typer.echo(json.dumps(data, ensure_ascii=False, indent=indent))


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, cut_last: bool = False) -> None:
    """Print rows under their columns' names, if these have any.

    Args:
        columns: Names.
        rows: Cells of each row.
        cut_last: On a terminal, cut what does not fit off the last column; else it is folded.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(*columns, box=None, pad_edge=False, show_header=any(columns))
    shown.columns[0].no_wrap = True
    # Elsewhere than on a terminal nothing is cut off: lines are for grep.
    console = Console(width=None if sys.stdout.isatty() else 1000)
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if cut_last:
        others = sum(2 + max(map(len, column)) for column in list(zip(columns, *cells, strict=True))[:-1])
        for row_of_text in cells:
            row_of_text[-1] = _cut(row_of_text[-1], max(console.width - others, len(columns[-1])))
    for row_of_text in cells:
        shown.add_row(*map(Text, row_of_text))
    console.print(shown)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


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


@contextmanager
def counting(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Give a function that counts one thing as done: on a terminal a live bar, else a line for every thousand."""
    done = 0
    if not sys.stderr.isatty() or total == 1:

        def count() -> None:
            nonlocal done
            done += 1
            if done % 1000 == 0:
                typer.echo(f"{title}: {done} of {total}", err=True)

        yield count
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        job = bar.add_task(title, total=total)
        yield lambda: bar.advance(job)


def with_usage(ask: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Ask for endpoints until what their workers use is known, for `USAGE_SECONDS` at most.

    Nobody looks while nobody asks: the first question begins it.
    """
    deadline = time.monotonic() + USAGE_SECONDS
    while True:
        endpoints = ask()
        workers = [worker for endpoint in endpoints for worker in endpoint["workers"]]
        if all(worker.get("cpus_used") is not None for worker in workers) or time.monotonic() > deadline:
            return endpoints
        time.sleep(0.2)


def usage_text(worker: dict[str, Any], spec: dict[str, Any]) -> str:
    """Return what a worker uses of what its endpoint gives it, ``""`` while that is not known."""
    if worker.get("cpus_used") is None:
        return ""
    memory = f"{worker['memory_mib_used']:.0f} of {spec['memory_mib']} MiB"
    return f"{worker['cpus_used']:.2f} of {spec['cpus']:g} CPU, {memory}, {worker['pids']} threads"


def error_text(error: dict[str, Any]) -> str:
    """Return an error object's kind and message; of a user's exception its own class."""
    kind = (error.get("context") or {}).get("exception_type") or error.get("type")
    return f"{kind}: {error.get('message')}"


def at(epoch_seconds: float | None, *, milliseconds: bool = False) -> str:
    """Return a time in the local zone, empty for None."""
    if epoch_seconds is None:
        return ""
    moment = datetime.fromtimestamp(epoch_seconds).astimezone()
    return moment.isoformat(" ", "milliseconds" if milliseconds else "seconds")[: 23 if milliseconds else 19]


def since(epoch_seconds: float | None) -> str:
    """Return how long ago a time was, in its largest unit."""
    if epoch_seconds is None:
        return ""
    seconds = max(0.0, time.time() - epoch_seconds)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
