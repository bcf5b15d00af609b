"""The embedded Redis as a real server: found again, durable through a kill, and nobody else's."""

import asyncio
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import redis
import redis.asyncio
from celery import Celery

from brinery.errors import DeploymentError
from brinery_platform.broker import broker_url
from brinery_platform.embedded_redis import EmbeddedRedis, embedded_url

STARTS_AND_IS_KILLED = """
import os, signal, sys
from pathlib import Path
from brinery_platform.broker import broker_url
from brinery_platform.embedded_redis import EmbeddedRedis

EmbeddedRedis(Path(sys.argv[1])).start()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(params=["socket", "port"])
def home(request, tmp_path):
    """A home whose Redis listens on a unix socket, and one whose path is too long for that."""
    home = tmp_path / ("home" if request.param == "socket" else "a-long-path" * 10)
    assert embedded_url(home).startswith("unix://" if request.param == "socket" else "redis://")
    return home


@pytest.fixture
def server(home):
    server = EmbeddedRedis(home)
    yield server
    server.stop()


def client_of(home):
    return redis.Redis.from_url(embedded_url(home), retry=None)


def pid_of(home):
    with client_of(home) as client:
        return client.info("server")["process_id"]


def test_it_answers_as_soon_as_it_is_started_and_is_gone_when_it_is_stopped(home, server):
    server.start()
    assert server.running()
    pid = pid_of(home)
    server.stop()
    assert not server.running()
    assert not psutil.pid_exists(pid)
    server.stop()


def test_starting_it_again_adopts_it(home, server):
    server.start()
    pid = pid_of(home)
    other = EmbeddedRedis(home)
    other.start()
    assert other.running()
    assert pid_of(home) == pid
    other.stop()
    assert not server.running()


def test_any_number_of_starts_at_once_make_one_server(home):
    servers = [EmbeddedRedis(home) for _ in range(4)]
    others = set(psutil.Process().children())  # another fixture may hold a server of its own
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(EmbeddedRedis.start, servers))
        started = [child for child in psutil.Process().children() if child.name() == "valkey-server"]
        assert len(set(started) - others) == 1
    finally:
        for server in servers:
            server.stop()


def test_a_killed_starter_leaves_a_server_that_the_next_one_adopts(home, server):
    killed = subprocess.run([sys.executable, "-c", STARTS_AND_IS_KILLED, str(home)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert server.running()
    pid = pid_of(home)
    server.start()
    assert pid_of(home) == pid


def test_what_was_answered_survives_a_kill_and_the_url_stays(home, server):
    server.start()
    url = embedded_url(home)
    with client_of(home) as client:
        for number in range(100):
            client.set(f"key-{number}", number)
    os.kill(pid_of(home), signal.SIGKILL)
    deadline = time.monotonic() + 10
    while server.running():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.start()
    assert embedded_url(home) == url
    with client_of(home) as client:
        assert client.get("key-99") == b"99"
        assert client.dbsize() == 100


def test_it_keeps_everything_and_drops_nothing(home, server):
    server.start()
    with client_of(home) as client:
        wanted = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "save": ""}
        assert {name: client.config_get(name)[name] for name in wanted} == wanted


def test_nobody_gets_in_without_the_password_which_only_this_user_can_read(home, server):
    server.start()
    password = (home / "redis" / "password").read_text()
    url = embedded_url(home).replace(f":{password}@", "")
    with redis.Redis.from_url(url) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.get("key")
    assert len(password) == 64
    assert password not in " ".join(psutil.Process(pid_of(home)).cmdline())
    assert (home / "redis").stat().st_mode & 0o077 == 0
    for name in ("password", "redis.conf", "redis.log"):
        assert (home / "redis" / name).stat().st_mode & 0o077 == 0


def test_all_processes_that_ask_first_at_once_get_the_same_url(home):
    with ThreadPoolExecutor(max_workers=8) as pool:
        assert len(set(pool.map(embedded_url, [home] * 32))) == 1
    assert {path.name for path in (home / "redis").iterdir()} <= {"password", "port"}


def test_a_taken_port_is_named_with_what_to_do(tmp_path):
    home = tmp_path / ("a-long-path" * 10)
    server = EmbeddedRedis(home)
    port = int((home / "redis" / "port").read_text())
    with socket.create_server(("127.0.0.1", port)), pytest.raises(DeploymentError, match=rf"its port {port}"):
        server.start()
    assert not server.running()


def test_a_server_that_is_not_known_keeps_a_second_one_off_its_files(server, home):
    server.start()
    with (home / "redis" / "server.lock").open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    server.stop()
    with (home / "redis" / "server.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("name", ['a "b" c', "a\\b", "a%20b@c"])
def test_a_home_of_any_name_works_for_redis_and_for_celery(tmp_path, name):
    home = tmp_path / name
    server = EmbeddedRedis(home)
    try:
        server.start()
        with client_of(home) as client:
            client.lpush("list", "value")
        assert (home / "redis" / "appendonlydir").is_dir()
        check_celery(home)
    finally:
        server.stop()


def test_celery_takes_its_url(home, server):
    server.start()
    check_celery(home)


def check_celery(home):
    app = Celery("test", broker=broker_url(embedded_url(home)), set_as_current=False)
    with app.connection_for_write() as connection, connection.SimpleQueue("some") as queue:
        queue.put({"a": 1})
        message = queue.get(timeout=10)
        assert json.loads(message.body) == {"a": 1}
        message.ack()


def test_asyncio_takes_its_url(home, server):
    server.start()

    async def ping():
        async with redis.asyncio.Redis.from_url(embedded_url(home)) as client:
            return await client.ping()

    assert asyncio.run(ping())
