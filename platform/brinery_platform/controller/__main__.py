"""``python -m brinery_platform.controller``: lead until SIGTERM; the workers go on after it."""

from __future__ import annotations

import signal

from brinery_platform.controller.reconcile import Controller
from brinery_platform.logs import configure_logging
from brinery_platform.services import connect
from brinery_platform.settings import read_settings


def main() -> None:
    """Run the controller of this process's settings."""
    settings = read_settings()
    configure_logging(settings.log_level)
    controller = Controller(connect(settings))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _signal, _frame: controller.stop())
    controller.run()


if __name__ == "__main__":
    main()
