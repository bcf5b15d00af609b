"""Where workers run: one contract (`base`), one file for each technology, loaded by name when it is wanted."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from brinery_platform.runtimes.base import Runtime
    from brinery_platform.runtimes.process import Interpreters
    from brinery_platform.settings import Settings

RUNTIMES: Final = {
    "docker": "brinery_platform.runtimes.docker.runtime:open_runtime",
    "process": "brinery_platform.runtimes.process:open_runtime",
}
"""Functions that take what `make_runtime` takes."""
DEFAULT: Final = "process"
"""What ``BRINERY_RUNTIME=auto`` means beside a `brinery up`, which settles it and says the outcome: see `choice`."""


def make_runtime(settings: Settings, environments: Interpreters) -> Runtime:
    """Return the runtime that the settings name.

    Args:
        settings: This process's settings; what it starts gets them through its environment.
        environments: The environments of this machine.
    """
    module, _, name = RUNTIMES[DEFAULT if settings.runtime == "auto" else settings.runtime].partition(":")
    made: Runtime = getattr(importlib.import_module(module), name)(settings, environments)
    return made
