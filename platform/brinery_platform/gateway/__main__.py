"""``python -m brinery_platform.gateway``: one process that listens until it is asked to end."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
from types import FrameType
from typing import Final

import structlog
import uvicorn

from brinery.errors import BrineryError, ConflictError
from brinery_platform.gateway.app import GatewayApp, create_app
from brinery_platform.gateway.one_piece import OnePieceProtocol
from brinery_platform.gateway.peers import refusing
from brinery_platform.logs import configure_logging
from brinery_platform.open_files import allow_connections
from brinery_platform.settings import Settings, read_settings

DRAIN_SECONDS: Final = 30
KEEP_ALIVE_SECONDS: Final = 75
"""Longer than usual proxies keep an idle connection, so that theirs ends first."""
BACKLOG: Final = 2048


class LibraryLogs(logging.Handler):
    """Puts what libraries log (uvicorn, asyncio) into the process's own log, in its form."""

    def emit(self, record: logging.LogRecord) -> None:
        """Pass one record on."""
        trouble = record.exc_info if record.exc_info and record.exc_info[0] else None
        structlog.get_logger().log(
            record.levelno, "library_log", library=record.name, text=record.getMessage(), exc_info=trouble
        )


class Server(uvicorn.Server):
    """uvicorn, which tells the application at once that it is to end, and a person when it listens.

    Args:
        app: What is served.
        settings: This process's settings.
    """

    def __init__(self, app: GatewayApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        super().__init__(
            uvicorn.Config(
                app,
                loop="uvloop",
                http=_protocol(settings),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=DRAIN_SECONDS,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # what has been loaded stays: later collections need not go through it again and again
        if self.started:
            print(f"The gateway listens on {self._settings.url}", flush=True)  # noqa: T201 - for a person

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end: running requests finish, whoever only waits is let go."""
        super().handle_exit(sig, frame)
        self._loop.call_soon_threadsafe(self._app.begin_shutdown)


def main() -> int:
    """Run the gateway.

    Returns:
        The process's exit code: 0 after SIGTERM or SIGINT, 1 if it could not start.
    """
    try:
        settings = read_settings()
        configure_logging(settings.log_level)
        logging.basicConfig(level=logging.WARNING, handlers=[LibraryLogs()])
        listener = listen(settings)
    except BrineryError as error:
        print(error.message, file=sys.stderr)  # noqa: T201 - for a person
        return 1
    allow_connections()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)  # uvicorn raises it once more after the end
    server = Server(create_app(settings), settings)
    server.run(sockets=[listener])
    return 0 if server.started else 1


def _protocol(settings: Settings) -> type[asyncio.Protocol]:
    """Return what speaks HTTP: workers in containers are not listened to, unless they may call."""
    if settings.runtime == "docker" and not settings.workers_may_call:
        return refusing(settings.worker_network)
    return OnePieceProtocol


def listen(settings: Settings) -> socket.socket:
    """Return a listening socket: from here on, clients wait instead of being refused.

    Raises:
        ConflictError: The port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConflictError(
            f"The gateway cannot listen on {settings.host}:{settings.port} ({error.strerror}); stop what is there, or "
            "set BRINERY_HOST and BRINERY_PORT."
        ) from None


if __name__ == "__main__":
    sys.exit(main())
