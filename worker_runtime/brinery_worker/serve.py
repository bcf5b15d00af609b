"""The serving process: loads the user's code in its main thread, then is gunicorn's threaded worker."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.workers.gthread import ThreadWorker

from brinery.errors import BrineryError
from brinery_worker.app import create_app
from brinery_worker.board import Board
from brinery_worker.bundle import BundleRefusedError, open_bundle
from brinery_worker.child import Orders
from brinery_worker.failures import remote_error, report
from brinery_worker.lineage import die_with_parent
from brinery_worker.predictor import Predictor, load
from brinery_worker.slots import Slots

_HEARTBEAT_SECONDS: Final = 0.5
_KEEPALIVE_SECONDS: Final = 75
"""Longer than any caller's pool keeps a connection, so that it is never we who close under a request."""
_LAST_REPLIES_SECONDS: Final = 2
_SPARE_THREADS: Final = 8
"""For health checks, refusals and bodies that are still being read while every slot and waiter is taken."""


class Server(ThreadWorker):  # type: ignore[misc]  # gunicorn ships no types
    """Gunicorn's threaded worker without an arbiter over it; the supervisor is what the arbiter would be."""

    def announce(self, channel: Channel) -> None:
        """Have the supervisor told through `channel` when requests are accepted."""
        self._channel = channel

    def init_signals(self) -> None:
        """Leave SIGTERM and SIGINT alone: stopping is ordered through the channel, after the drain."""

    def notify(self) -> None:
        """Spare the system call: there is no arbiter to read it, and the heartbeat says more."""

    def run(self) -> None:
        """Serve until ended."""
        self._channel.send({"ready": True})
        super().run()

    def end(self) -> None:
        """Stop accepting and return from `run` when the last replies are sent; called from another thread."""
        self.handle_exit(signal.SIGTERM, None)


class Channel:
    """The serving process's end of the stream to its supervisor."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)

    def send(self, message: dict[str, Any]) -> None:
        """Send one message; waits until it is taken."""
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def obey(self, server: Server, slots: Slots) -> None:
        """Carry out the supervisor's orders, for ever; the body of a thread."""
        for line in self._socket.makefile("rb"):
            message = json.loads(line)
            if "stop" in message:
                slots.stop(*message["stop"])
            elif "end" in message:
                server.end()


class _Application:
    """What gunicorn calls an application."""

    def __init__(self, wsgi: Any) -> None:
        self._wsgi = wsgi

    def wsgi(self) -> Any:
        return self._wsgi


def main() -> None:
    """Serve as the supervisor ordered on the command line; ends the process."""
    orders = Orders(**json.loads(sys.argv[1]))
    die_with_parent(orders.supervisor_pid)
    _leave_signals_to_the_supervisor()
    for fd in (orders.listen_fd, orders.channel_fd, orders.board_fd):
        os.set_inheritable(fd, False)
    faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # both are text files here
    sys.argv = ["brinery_worker"]
    channel = Channel(orders.channel_fd)
    board = Board(orders.board_fd, orders.concurrency)
    threading.Thread(target=_beat, args=(board,), name="heartbeat", daemon=True).start()
    try:
        bundle = open_bundle(Path(orders.bundle), orders.sha256)
    except BundleRefusedError as error:
        channel.send({"refused": str(error)})
        _leave(3)
    predictor = _load_or_leave(channel, lambda: load(bundle))
    slots = Slots(board)
    server = _server(predictor, slots, orders)
    server.announce(channel)
    threading.Thread(target=channel.obey, args=(server, slots), name="orders", daemon=True).start()
    server.init_process()
    try:
        predictor.unload()
    except BaseException as error:  # noqa: BLE001 - user code; it must not turn an orderly stop into a crash
        report("unload", remote_error(error))
    if bundle.sources is not None:
        bundle.sources.remove()
    if slots.idle:
        sys.exit(0)
    _leave(0)  # threads that still run user code would keep the interpreter from ending


def _leave_signals_to_the_supervisor() -> None:
    """Ignore SIGTERM and SIGINT here, but not in what user code starts."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        signal.signal(number, lambda *_: None)  # SIG_IGN would be inherited by programs

    def give_back() -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)

    # Forks (multiprocessing) inherit the handlers, and their terminate() would do nothing. The signals are blocked
    # meanwhile, for a terminate() that comes before the fork could give the handlers back.
    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, numbers),
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers),
        after_in_child=give_back,
    )


def _load_or_leave(channel: Channel, load_bundle: Any) -> Predictor:
    try:
        predictor: Predictor = load_bundle()
    except BaseException as error:
        if isinstance(error, BrineryError):
            channel.send({"failed": error.to_json()})
        else:
            remote = remote_error(error)
            report("loading the bundle", remote)
            channel.send({"failed": remote.to_json()})
        _leave(1)
        raise
    return predictor


def _leave(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    logging.shutdown()
    os._exit(code)


def _beat(board: Board) -> None:
    while True:
        board.beat()
        time.sleep(_HEARTBEAT_SECONDS)


def _server(predictor: Predictor, slots: Slots, orders: Orders) -> Server:
    config = Config()
    threads = 2 * slots.count + _SPARE_THREADS
    for name, value in {
        "threads": threads,
        "worker_connections": 1000 + threads,
        "keepalive": _KEEPALIVE_SECONDS,
        "graceful_timeout": _LAST_REPLIES_SECONDS,
        "loglevel": "warning",
    }.items():
        config.set(name, value)
    listener = socket.socket(fileno=orders.listen_fd)
    application = _Application(create_app(predictor, slots))
    return Server(0, orders.supervisor_pid, [listener], application, 0, config, Logger(config))


if __name__ == "__main__":
    main()
