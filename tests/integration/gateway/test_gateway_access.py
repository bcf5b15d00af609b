"""Who may do what: keys, owners, and what is open to everybody."""

from __future__ import annotations

import base64
import re

import httpx
import pytest
from gateway_process import Deployed
from stub_worker import wait_until

from brinery.spec import TaskStatus

PATHS = [
    ("GET", "/v1/info"),
    ("GET", "/v1/bundles"),
    ("POST", "/v1/bundles"),
    ("GET", "/v1/endpoints"),
    ("PUT", "/v1/endpoints/some"),
    ("POST", "/v1/endpoints/some/predict"),
    ("POST", "/v1/endpoints/some/tasks"),
    ("PUT", "/v1/endpoints/some/tasks/tsk_1"),
    ("GET", "/v1/tasks/tsk_1/input"),
    ("GET", "/v1/tasks/tsk_1/attempts"),
    ("POST", "/v1/tasks/tsk_1/requeue"),
    ("POST", "/v1/tasks/tsk_1/drop"),
    ("POST", "/v1/tasks/events"),
    ("GET", "/v1/endpoints/some/events"),
    ("GET", "/v1/endpoints/some/logs"),
    ("GET", "/v1/tasks/tsk_1"),
    ("GET", "/v1/keys"),
    ("POST", "/v1/keys"),
    ("GET", "/openapi.json"),
]


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize("authorization", [None, "Bearer nonsense", "Bearer", "Basic !!!", "Digest x", "Bearer größe"])
def test_nothing_goes_without_a_key(gateway, method, path, authorization):
    headers = {} if authorization is None else {"Authorization": authorization.encode()}
    response = httpx.request(method, f"{gateway.url}{path}", headers=headers)
    assert (response.status_code, response.json()["error"]["type"]) == (401, "authentication")
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-brinery-request-id"]


def test_health_and_readiness_are_open(gateway):
    assert httpx.get(f"{gateway.url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{gateway.url}/readyz").json() == {"status": "ready"}


def test_basic_authentication_takes_the_key_as_user_name(gateway):
    assert httpx.get(f"{gateway.url}/v1/info", auth=(gateway.key, "")).status_code == 200
    header = base64.b64encode(f"nobody:{gateway.key}".encode()).decode()
    response = httpx.get(f"{gateway.url}/v1/info", headers={"Authorization": f"Basic {header}"})
    assert response.status_code == 401


def test_anothers_endpoint_cannot_be_told_from_one_that_does_not_exist(other_client, worker, deploy):
    one = worker()
    endpoint = deploy(one)
    for method, path in (
        ("POST", "/predict"),
        ("POST", "/tasks"),
        ("PUT", "/tasks/tsk_1"),
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/versions"),
        ("POST", "/restart"),
        ("GET", "/events"),
        ("GET", "/logs"),
    ):
        body = {"json": {}} if method in {"POST", "PUT"} else {}
        theirs = other_client.request(method, f"/v1/endpoints/{endpoint.name}{path}", **body)
        nobodys = other_client.request(method, f"/v1/endpoints/not-there{path}", **body)
        assert (theirs.status_code, nobodys.status_code) == (404, 404), (method, path)
        assert theirs.text.replace(endpoint.name, "NAME") == nobodys.text.replace("not-there", "NAME")
    assert not one.seen


def test_two_owners_may_use_the_same_name(gateway, client, other_client, worker, deploy):
    mine, theirs = worker(), worker()
    first = deploy(mine)
    second = Deployed(gateway.redis, first.name, "bob")
    second.serve(theirs)
    wait_until(lambda: other_client.get(f"/v1/tasks?endpoint={first.name}").status_code == 200)
    assert client.post(f"/v1/endpoints/{first.name}/predict", json={"who": "ann"}).status_code == 200
    assert other_client.post(f"/v1/endpoints/{first.name}/predict", json={"who": "bob"}).status_code == 200
    assert (b"ann" in mine.seen[0].body, b"bob" in theirs.seen[0].body) == (True, True)
    second.remove()


def test_only_administrators_manage_keys(other_client):
    assert other_client.get("/v1/keys").status_code == 403
    assert other_client.post("/v1/keys", json={"owner": "bob", "name": "more"}).status_code == 403
    assert other_client.delete("/v1/keys/key_1").status_code == 403


def test_a_second_owner_needs_the_operators_consent(client):
    response = client.post("/v1/keys", json={"owner": "eve", "name": "laptop"})
    assert (response.status_code, response.json()["error"]["type"]) == (409, "conflict")
    assert "BRINERY_TRUST_ALL_OWNERS" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "body", [{"owner": "../etc", "name": "x"}, {"owner": "ann"}, {"owner": "ann", "name": "", "x": 1}]
)
def test_a_key_that_is_described_wrongly_is_refused(client, body):
    response = client.post("/v1/keys", json=body)
    assert (response.status_code, response.json()["error"]["type"]) == (422, "invalid_request")


def test_a_key_revoked_anywhere_is_soon_dead_here(gateway):
    key, text = gateway.store.create_key("ann", "laptop")
    with gateway.client(text) as laptop:
        wait_until(lambda: laptop.get("/v1/info").status_code == 200)
        gateway.store.revoke_key(key.id)  # as another gateway would
        wait_until(lambda: laptop.get("/v1/info").status_code == 401, seconds=5)


def test_metrics_of_all_owners_are_for_this_machine_and_for_administrators(
    gateway, client, other_client, worker, deploy
):
    endpoint = deploy(worker())
    client.post(f"/v1/endpoints/{endpoint.name}/predict", json={})
    text = httpx.get(f"{gateway.url}/metrics").text
    of_it = f'endpoint="{endpoint.name}",owner="ann"'
    assert f'brinery_requests_total{{{of_it},status="2xx"}} 1.0' in text
    assert f"brinery_request_seconds_count{{{of_it}}} 1.0" in text
    assert f"brinery_ready_workers{{{of_it}}} 1.0" in text
    proxied = {"X-Forwarded-For": "203.0.113.7"}
    assert httpx.get(f"{gateway.url}/metrics", headers=proxied).status_code == 401
    assert other_client.get("/metrics", headers=proxied).status_code == 403
    assert client.get("/metrics", headers=proxied).status_code == 200


def test_metrics_tell_how_the_tasks_stand_and_how_they_ended(client, deploy, forwarder):
    endpoint = deploy()
    ids = [client.post(f"/v1/endpoints/{endpoint.name}/tasks", json={}).json()["id"] for _ in range(3)]
    forwarder.tasks.finish(
        forwarder.claim(ids[0]), TaskStatus.SUCCEEDED, reason="", result_type="application/json", result=b"1"
    )
    client.delete(f"/v1/tasks/{ids[1]}")
    text = client.get("/metrics").text
    of_it = f'endpoint="{endpoint.name}",owner="ann"'
    for status in ("succeeded", "cancelled"):
        assert f'brinery_tasks_finished_total{{{of_it},status="{status}"}} 1.0' in text
    for name, value in (("open", "1.0"), ("queued", "1.0"), ("dead", "0.0")):
        assert f"brinery_tasks_{name}{{{of_it}}} {value}" in text
    oldest = re.search(rf"brinery_tasks_oldest_seconds{{{re.escape(of_it)}}} (\S+)", text)
    assert 0 < float(oldest[1]) < 60


def test_what_does_not_exist_is_answered_in_our_shape(client):
    response = client.get("/v1/nothing")
    assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found")
    response = client.post("/v1/info")
    assert (response.status_code, response.json()["error"]["type"]) == (405, "invalid_request")
    response = client.put("/v1/endpoints/some", content=b"{", headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["error"]["type"]) == (422, "invalid_request")
