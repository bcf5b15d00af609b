"""One serving process as its supervisor holds it: started, listened to, told to stop a request, ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from typing import Any, NamedTuple

from brinery_worker.board import Board
from brinery_worker.exits import Exit, describe_exit, out_of_memory_kills
from brinery_worker.settings import environment


class Orders(NamedTuple):
    """What a serving process is started with; travels as JSON on its command line.

    Args:
        bundle: Path of the bundle.
        sha256: Digest to find in it, lower-case hex.
        concurrency: Slots.
        listen_fd: Inherited listening socket.
        channel_fd: Inherited stream socket to the supervisor; JSON lines both ways.
        board_fd: Inherited memory of the `Board`.
        supervisor_pid: Whom to die with.
    """

    bundle: str
    sha256: str
    concurrency: int
    listen_fd: int
    channel_fd: int
    board_fd: int
    supervisor_pid: int


class Child:
    """A running serving process.

    Args:
        bundle: Path of the bundle.
        sha256: Digest to find in it.
        concurrency: Slots.
        listener: The serving socket.
        draining: Whether it starts turned away from new requests.
    """

    def __init__(
        self,
        *,
        bundle: str,
        sha256: str,
        concurrency: int,
        listener: socket.socket,
        draining: bool,
    ) -> None:
        self.ready = False
        self.started_at = time.monotonic()
        self.killed_because: str | None = None
        self.told_to_end = False
        self._memory_kills = out_of_memory_kills()
        self._received = b""
        self.board, board_fd = Board.create(concurrency)
        self.board.draining = draining
        self.channel, theirs = socket.socketpair()
        orders = Orders(
            bundle,
            sha256,
            concurrency,
            listener.fileno(),
            theirs.fileno(),
            board_fd,
            os.getpid(),
        )
        inherited = (orders.listen_fd, orders.channel_fd, orders.board_fd)
        try:
            for fd in inherited:
                os.set_inheritable(fd, True)
            self.pid = os.posix_spawn(
                sys.executable,
                # -P: the current folder is not the user's code and must not shadow modules.
                [sys.executable, "-P", "-m", "brinery_worker.serve", json.dumps(orders._asdict())],
                environment(),
                file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
            )
        finally:
            os.set_inheritable(orders.listen_fd, False)
            theirs.close()
            os.close(board_fd)
        self.channel.setblocking(False)

    def receive(self) -> list[dict[str, Any]]:
        """Return the messages that have arrived, without waiting."""
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while data := self.channel.recv(256 * 1024):
                self._received += data
        *lines, self._received = self._received.split(b"\n")
        return [json.loads(line) for line in lines]

    def stop_request(self, index: int, sequence: int, reason: str) -> None:
        """Ask for one request to be stopped by an exception in its code.

        Args:
            index: Its slot.
            sequence: Its number; nothing happens when the slot holds another by now.
            reason: ``cancelled`` or ``timeout``.
        """
        self._send({"stop": [index, sequence, reason]})

    def end(self) -> None:
        """Ask it to send its last replies, run the user's ``unload`` and end."""
        self.told_to_end = True
        # Not by SIGTERM: one sent to our whole process group must not cut short the drain.
        self._send({"end": True})

    def kill(self, because: str) -> None:
        """End it now.

        Args:
            because: What `Exit.reason` will say.
        """
        if self.killed_because is None:
            self.killed_because = because
        # Never another process: we have not reaped it, so the id is still its own.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def ended(self, status: int) -> Exit:
        """Return how it ended and let go of what belonged to it.

        Args:
            status: As ``os.waitpid`` gave it; the process is reaped.
        """
        self.channel.close()
        self.board.close()
        return describe_exit(
            status,
            killed_because=self.killed_because,
            out_of_memory=out_of_memory_kills() > self._memory_kills,
        )

    def _send(self, message: dict[str, Any]) -> None:
        # A full or closed channel means that nobody in there listens any more: the grace then ends the process.
        with contextlib.suppress(OSError):
            self.channel.send(json.dumps(message).encode() + b"\n")
