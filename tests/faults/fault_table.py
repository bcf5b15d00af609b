"""The tables in ``docs/faults.md``: each between two marks of its own; a run replaces the rows that it has."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fault_ledger import LEDGERS, Ledger

PAGE_VARIABLE = "FAULTS_PAGE"
"""Names the page to write, where the run is to write it; `make faults` does, CI does not."""
RANDOM = "random faults"
"""In the name of a ledger that belongs into the second table."""
PROOFS: list[tuple[str, str, str]] = []
"""Of this process: a test, the mechanism that it was run without, what it saw."""


def write_page() -> None:
    """Put this run's rows into the page that the variable names; rows of what it did not run stay."""
    if not (name := os.environ.get(PAGE_VARIABLE)):
        return
    page = Path(name)
    text = page.read_text()
    for section, rows in (
        ("faults", [_of_ledger(one) for one in LEDGERS if RANDOM not in one.fault]),
        ("random", [_of_ledger(one) for one in LEDGERS if RANDOM in one.fault]),
        ("proof", [f"| `{test}` | {without} | {_short(seen)} |" for test, without, seen in PROOFS]),
    ):
        text = _with_rows(text, section, rows)
    page.write_text(text)


def _with_rows(text: str, section: str, rows: list[str]) -> str:
    """Put rows into the table between ``<!-- section -->`` and ``<!-- /section -->``, each in place of its old one."""
    found = re.search(rf"<!-- {section} -->\n(.*?)<!-- /{section} -->", text, flags=re.DOTALL)
    assert found, f"there is no place for {section!r}"
    head = found[1].splitlines()[:2]
    kept = {_first(row): row for row in found[1].splitlines()[2:]}
    kept |= {_first(row): row for row in rows}
    lines = "".join(f"{line}\n" for line in (*head, *kept.values()))
    return text[: found.start(1)] + lines + text[found.end(1) :]


def _first(row: str) -> str:
    return row.split("|")[1].strip()


def _of_ledger(one: Ledger) -> str:
    again = "-" if one.recovery_seconds is None else f"{one.recovery_seconds:.2f} s"
    cells = [one.fault, one.submitted, one.refused, one.finished, len(one.lost), len(one.twice), again]
    return f"| {' | '.join(map(str, cells))} |"


def _short(seen: str) -> str:
    """Leave the ids out, which say nothing, and what would end a cell."""
    return re.sub(r"tsk_\w+", "a task", seen).replace("|", "/")[:160]
