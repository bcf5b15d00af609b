"""Who may connect to a gateway whose workers are containers, and whose keys it makes."""

import httpx
import pytest
from gateway_process import GatewayProcess

WORKERS = "127.9.0.0/16"


@pytest.fixture
def with_containers(valkey, tmp_path):
    """Gateways that are told that workers run as containers, in a network of loopback."""
    made = []

    def make(**variables):
        one = GatewayProcess(
            tmp_path / "home",
            valkey.connection_url,
            BRINERY_RUNTIME="docker",
            BRINERY_WORKER_CIDR=WORKERS,
            DOCKER_HOST=f"unix://{tmp_path}/none.sock",
            **variables,
        )
        made.append(one)
        one.start()
        return one

    yield make
    for one in made:
        one.close()


def from_a_worker(gateway):
    transport = httpx.HTTPTransport(local_address="127.9.1.2")
    with httpx.Client(base_url=gateway.url, transport=transport, trust_env=False, timeout=30) as client:
        return client.get("/healthz").status_code


def test_a_worker_is_hung_up_on_and_others_are_served(with_containers):
    gateway = with_containers()
    with pytest.raises(httpx.TransportError):
        from_a_worker(gateway)
    assert httpx.get(f"{gateway.url}/healthz", timeout=30).status_code == 200


def test_a_worker_is_served_where_workers_may_call(with_containers):
    assert from_a_worker(with_containers(BRINERY_WORKERS_MAY_CALL="true")) == 200


def test_a_second_owner_needs_no_consent_where_containers_keep_them_apart(with_containers):
    with with_containers().client() as client:
        assert client.post("/v1/keys", json={"owner": "eve", "name": "laptop"}).status_code == 201
