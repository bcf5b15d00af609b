"""Real servers on loopback for the integration tests: Valkey, PostgreSQL, two kinds of S3, forwarders as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator

import pytest
import redis
from moto.server import ThreadedMotoServer
from task_records import ME, OTHER

from brinery_platform.objects import FolderObjects
from brinery_platform.tasks import Tasks
from servers import PostgresProcess, ValkeyProcess, rclone_s3, running_postgres


@pytest.fixture(scope="session")
def shared_valkey(tmp_path_factory) -> Iterator[ValkeyProcess]:
    server = ValkeyProcess(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def own_valkey(tmp_path) -> Iterator[ValkeyProcess]:
    """A server that the test may kill."""
    folder = tmp_path / "valkey"
    folder.mkdir()
    server = ValkeyProcess(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def redis_url(shared_valkey) -> str:
    """An empty database on a server shared by the session."""
    with redis.Redis.from_url(shared_valkey.url) as client:
        client.flushall()
    return shared_valkey.url


@pytest.fixture
def redis_client(redis_url) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


# ------------------------------------------------------------------------------------------------------ PostgreSQL
@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresProcess]:
    """A server for the whole session."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[PostgresProcess]:
    """A server that the test may end and start again."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def postgres_url(postgres) -> Iterator[str]:
    """An empty database of the test's own."""
    with postgres.database() as url:
        yield url


# ---------------------------------------------------------------------------------------------------------- tasks
@pytest.fixture
def tasks(redis_client) -> Tasks:
    """The task records on that server."""
    return Tasks(redis_client)


@pytest.fixture
def incarnations(tasks) -> None:
    """Two forwarders that live, as far as the records know."""
    tasks.register(ME)
    tasks.register(OTHER)


@pytest.fixture
def objects(tmp_path) -> FolderObjects:
    return FolderObjects(tmp_path / "objects")


# ------------------------------------------------------------------------------------------------------------ S3
@pytest.fixture(scope="session")
def rclone_url(tmp_path_factory) -> Iterator[str]:
    """``rclone serve s3``: checks signatures, keeps objects as files."""
    with rclone_s3(tmp_path_factory.mktemp("rclone")) as url:
        yield url


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    """The server of moto: the whole API, in memory."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    request = urllib.request.Request(f"{url}/bucket", method="PUT")  # noqa: S310 - our own server
    urllib.request.urlopen(request).close()  # noqa: S310 - our own server
    yield url
    server.stop()


# ----------------------------------------------------------------------------------------------------- forwarders
@pytest.fixture
def start_forwarder(tmp_path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start forwarders as the controller does; what still runs at the end is asked to stop, and must."""
    started: list[subprocess.Popen[bytes]] = []

    def start(endpoint_id: str, *, running_id: str = "fwd_a", redis_url: str, objects_url: str = ""):
        command = [sys.executable, "-m", "brinery_platform.forwarder", "--endpoint", endpoint_id, "--id", running_id]
        variables = {
            **os.environ,
            "BRINERY_HOME": str(tmp_path),
            "BRINERY_REDIS_URL": redis_url,
            "BRINERY_OBJECTS_URL": objects_url or f"file://{tmp_path}/objects",
        }
        with (tmp_path / f"{running_id}.log").open("ab") as log:
            process = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)
    for process in started:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail("a forwarder did not stop; its log is in the test's folder")
