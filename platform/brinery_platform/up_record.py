"""Which `brinery up` runs in a home: a lock that ends with its process, and a record of where it answers."""

from __future__ import annotations

import fcntl
import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class UpRecord:
    """What ``<home>/run/up.json`` says of the `up` that runs: for `status`, `down` and a second `up`."""

    pid: int
    url: str
    started_at: float
    ready: bool

    @classmethod
    def read(cls, home: Path) -> UpRecord | None:
        """Return the record of the `up` that holds the home's lock now, or None."""
        if not lock_held(home):
            return None
        try:
            return cls(**json.loads((home / "run" / "up.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, home: Path) -> None:
        """Write it in one step."""
        path = home / "run" / "up.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self)))
        fresh.rename(path)


def lock_held(home: Path) -> bool:
    """Whether an `up` runs in this home; the lock ends with its process, however that ends."""
    try:
        with (home / "run" / "up.lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
