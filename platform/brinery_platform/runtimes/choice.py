"""Which runtime the last `brinery up` of a home used, for that home's other commands, in whatever shell."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from brinery_platform.settings import Settings

Name = Literal["process", "docker"]


@dataclass(frozen=True)
class Choice:
    """What runs the workers of a home, as ``<home>/run/runtime.json`` keeps it.

    Args:
        runtime: A name of `runtimes.RUNTIMES`.
        why: In a few words, for a person.
    """

    runtime: Name
    why: str

    @classmethod
    def read(cls, home: Path) -> Choice | None:
        """Return what the last `up` of a home came to, None where there was none."""
        try:
            return cls(**json.loads(_path(home).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, home: Path) -> None:
        """Write it in one step."""
        fresh = _path(home).with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self)))
        fresh.rename(_path(home))


def in_force(settings: Settings) -> Settings:
    """Return the settings with the runtime that the last `up` of this home used, for commands beside that `up`.

    Where there was none, ``auto`` means processes: nothing runs there in any case.
    """
    last = Choice.read(settings.home)
    if last is not None:
        return settings.model_copy(update={"runtime": last.runtime})
    return settings.model_copy(update={"runtime": "process"}) if settings.runtime == "auto" else settings


def _path(home: Path) -> Path:
    return home / "run" / "runtime.json"
