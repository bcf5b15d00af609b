"""``python -m brinery_platform.controller``: lead until SIGTERM; the workers go on after it."""

from __future__ import annotations

import signal
import sys

from brinery.errors import BrineryError
from brinery_platform.controller.reconcile import Controller
from brinery_platform.logs import configure_logging
from brinery_platform.services import connect
from brinery_platform.settings import read_settings


def main() -> int:
    """Run the controller of this process's settings.

    Returns:
        The process's exit code: 0 after SIGTERM or SIGINT, 1 if it could not start.
    """
    try:
        settings = read_settings()
        configure_logging(settings.log_level)
        controller = Controller(connect(settings))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _signal, _frame: controller.stop())
        controller.run()
    except BrineryError as error:
        print(error.message, file=sys.stderr)  # noqa: T201 - for a person
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
