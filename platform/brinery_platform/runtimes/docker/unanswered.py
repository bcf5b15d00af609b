"""Why an engine does not answer, and what to do about it."""

from __future__ import annotations

import errno
import os
from typing import Final

_DENIED: Final = os.strerror(errno.EACCES)
_MISSING: Final = os.strerror(errno.ENOENT)


def explain(error: BaseException) -> str:
    """Return an engine's silence as a sentence for whoever runs the platform."""
    reason = _reason(error)
    cure = "start it"
    if reason == _DENIED:
        cure = "give this process the group that owns its socket"
    elif reason == _MISSING:
        cure = "start it (in a container: mount its socket)"
    return f"The Docker engine does not answer ({reason}); {cure}, or set BRINERY_RUNTIME=process."


def _reason(error: BaseException | None) -> str:
    """Return the operating system's words where there are any: the libraries wrap them three times."""
    text = str(error)
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            text = error.strerror
        error = error.__cause__ or error.__context__
    return text
