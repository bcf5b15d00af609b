"""How many files a process may have open; each connection is one."""

from __future__ import annotations

import resource


def allow_connections() -> None:
    """Raise the limit of open files to what the system lets this process have: each waiter holds a connection."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
