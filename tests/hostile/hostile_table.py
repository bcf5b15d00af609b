"""The table in ``docs/hostile.md``: what was tried, what it did in a container without protection, and in a worker."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

PAGE_VARIABLE = "HOSTILE_PAGE"
"""Names the page to write, where the run is to write it."""


@dataclass(frozen=True)
class Row:
    """One attempt: what the control container, or whoever read raw, got; what ours got; what the endpoint says."""

    attempt: str
    control: str
    ours: str
    says: str = ""

    def __str__(self) -> str:
        return f"{self.attempt}: {self.control} / {self.ours} / {self.says}"


ROWS: list[Row] = []
INSPECTED: list[str] = []
"""Lines of ``docker inspect`` of a worker."""


def write_page() -> None:
    """Put this run's rows into the page that the variable names; rows of what it did not run stay."""
    if not (name := os.environ.get(PAGE_VARIABLE)):
        return
    page = Path(name)
    text = page.read_text()
    rows = [f"| {' | '.join(map(_cell, (one.attempt, one.control, one.ours, one.says)))} |" for one in ROWS]
    text = _with_rows(text, rows)
    if INSPECTED:
        block = "```\n" + "\n".join(INSPECTED) + "\n```\n"
        text = re.sub(
            r"<!-- inspect -->\n.*?<!-- /inspect -->",
            lambda _: f"<!-- inspect -->\n{block}<!-- /inspect -->",
            text,
            flags=re.DOTALL,
        )
    page.write_text(text)


def _with_rows(text: str, rows: list[str]) -> str:
    found = re.search(r"<!-- attempts -->\n(.*?)<!-- /attempts -->", text, flags=re.DOTALL)
    assert found, "there is no place for the attempts"
    head = found[1].splitlines()[:2]
    kept = {row.split("|")[1].strip(): row for row in [*found[1].splitlines()[2:], *rows]}
    lines = "".join(f"{line}\n" for line in (*head, *kept.values()))
    return text[: found.start(1)] + lines + text[found.end(1) :]


def _cell(text: str) -> str:
    """Leave out what is another one in every run, and what would end a cell."""
    text = re.sub(r"\b(wrk|tsk|req|end)_\w+", r"\1_…", " ".join(text.split()))
    text = re.sub(r"\b(10\.213|172\.1\d)\.\d+\.\d+(:\d+)?", "…", text)
    return text.replace("|", "/")[:220]
