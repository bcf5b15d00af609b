"""The command line: deploy, call and look after endpoints from a terminal. What goes wrong is one line on stderr."""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import typer

    app: typer.Typer


def __getattr__(name: str) -> Any:
    """Give ``app``, every command in it, to whoever wants the whole tree; `main` builds no more than it needs."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from brinery.cli.tree import build

    return build()


def main() -> None:
    """Run the command line of this process and exit."""
    from brinery.cli.tree import PLATFORM_COMMANDS, PLATFORM_HINT, build
    from brinery.config import debugging
    from brinery.errors import BrineryError

    command = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "")
    try:
        build(command)()
    except (BrineryError, TimeoutError) as error:
        if debugging():
            raise
        _fail(f"Error: {error}")
    except OSError as error:
        if debugging() or error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EROFS}:
            raise
        _fail(f"Error: {error}. Make room where Brinery keeps its files (BRINERY_HOME and TMPDIR), then try again.")
    except ModuleNotFoundError as error:
        if debugging() or command not in PLATFORM_COMMANDS:
            raise
        _fail(f"Error: `brinery {command}` needs the module {error.name!r}. {PLATFORM_HINT}")


def _fail(text: str) -> None:
    sys.stderr.write(text.rstrip() + "\n")
    sys.exit(1)
