"""The command line of a worker: reads it, takes or binds the two sockets, and supervises."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path
from typing import Final

from brinery_worker.supervisor import Options, Supervisor

# The same numbers as in brinery.spec, which would bring in modules that a supervisor should not carry.
SERVING_PORT: Final = 5005
CONTROL_PORT: Final = 5006
_BACKLOG: Final = 512


def main(arguments: list[str] | None = None) -> int:
    """Run a worker until it is told to stop.

    Args:
        arguments: The command line without the program's name; the process's own when left out.

    Returns:
        0 stopped, 2 wrong command line or port taken, 3 bundle refused.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    digest = given.sha256.lower()
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        parser.error("--sha256 takes the 64 hexadecimal digits of the bundle's SHA-256")
    if not 1 <= given.concurrency <= 256:
        parser.error("--concurrency takes a number from 1 to 256")
    if not 0 <= given.drain_seconds <= 3600:
        parser.error("--drain-seconds takes a number from 0 to 3600")
    try:
        serving = _listener(given.listen_fd, given.host, given.port)
        control = _listener(given.control_fd, given.host, given.control_port)
    except (OSError, OverflowError) as error:
        parser.error(f"cannot listen: {error}; give another port, or a socket that listens")
    _say_where(serving, control)
    options = Options(str(Path(given.bundle).absolute()), digest, given.concurrency, given.drain_seconds)
    return Supervisor(options, serving, control).run()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="brinery_worker", description="Serve one bundle.", allow_abbrev=False)
    parser.add_argument("--bundle", required=True, help="the bundle's file")
    parser.add_argument("--sha256", required=True, help="digest that the file must have, hex")
    serving = parser.add_mutually_exclusive_group()
    serving.add_argument("--port", type=int, default=SERVING_PORT, help="port to serve on (default 5005)")
    serving.add_argument("--listen-fd", type=int, help="inherited listening socket to serve on instead")
    control = parser.add_mutually_exclusive_group()
    control.add_argument("--control-port", type=int, default=CONTROL_PORT, help="port of the supervisor (5006)")
    control.add_argument("--control-fd", type=int, help="inherited listening socket of the supervisor instead")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind both ports on (default 127.0.0.1)")
    parser.add_argument("--concurrency", type=int, default=1, help="requests run at the same time, 1 to 256")
    parser.add_argument("--drain-seconds", type=float, default=30.0, help="time to finish requests when stopped")
    return parser


def _listener(fd: int | None, host: str, port: int) -> socket.socket:
    if fd is not None:
        listener = socket.socket(fileno=fd)
        if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(f"file descriptor {fd} is not a listening socket")
        os.set_inheritable(fd, False)
    else:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    if listener.family in {socket.AF_INET, socket.AF_INET6}:
        # Accepted connections inherit it; headers and body leave in two writes and must not wait for an ACK.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setblocking(False)
    return listener


def _say_where(serving: socket.socket, control: socket.socket) -> None:
    places = [str(listener.getsockname()[1]) for listener in (serving, control)]
    sys.stderr.write(f"brinery-worker: serving on port {places[0]}, control on port {places[1]}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
