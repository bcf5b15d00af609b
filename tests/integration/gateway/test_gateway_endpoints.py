"""The life of an endpoint through a real gateway; the test itself is the controller."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from stub_worker import events_of, wait_until
from test_gateway_bundles import manifest, packed

from brinery.spec import CONTENT_BUNDLE, EndpointStatus
from brinery_platform import event_log
from brinery_platform.routes import WAKE


@pytest.fixture
def bundle_id(client, request):
    data = packed(manifest(requirements=[]), **{"sources/who": request.node.name})
    return client.post("/v1/bundles", content=data, headers={"Content-Type": CONTENT_BUNDLE}).json()["id"]


@pytest.fixture
def name(request):
    return f"e{abs(hash(request.node.name)):x}"


def put(client, name, /, **described):
    return client.put(f"/v1/endpoints/{name}", json=described)


def test_an_endpoint_is_created_once_and_changed_by_its_whole_description(client, bundle_id, name):
    created = put(client, name, bundle_id=bundle_id, max_workers=3)
    assert created.status_code == 201
    endpoint = created.json()
    assert (endpoint["name"], endpoint["owner"], endpoint["status"]) == (name, "ann", "building")
    assert (endpoint["wanted_version"], endpoint["serving_version"], endpoint["workers"]) == (1, 0, [])
    assert (endpoint["spec"]["max_workers"], endpoint["spec"]["concurrency"]) == (3, 1)
    same = put(client, name, bundle_id=bundle_id, max_workers=3)
    assert same.json()["wanted_version"] == 1
    changed = put(client, name, bundle_id=bundle_id, concurrency=2)
    assert (changed.status_code, changed.json()["wanted_version"]) == (200, 2)
    assert (changed.json()["spec"]["max_workers"], changed.json()["spec"]["concurrency"]) == (1, 2)
    assert client.get(f"/v1/endpoints/{name}").json() == changed.json()
    alone = changed.json()
    assert alone.pop("image") is None
    assert alone in client.get("/v1/endpoints").json()["endpoints"]


@pytest.mark.parametrize(
    ("described", "status"),
    [
        ({}, 422),
        ({"max_workers": 0}, 422),
        ({"min_workers": 3, "max_workers": 2}, 422),
        ({"colour": "red"}, 422),
        ({"name": "another"}, 409),
        ({"bundle_id": "bun_missing"}, 404),
    ],
)
def test_a_description_that_is_wrong_changes_nothing(client, bundle_id, name, described, status):
    body = {"bundle_id": bundle_id, **described} if described else {}
    assert put(client, name, **body).status_code == status
    assert client.get(f"/v1/endpoints/{name}").status_code == 404


def test_anothers_bundle_cannot_be_served(other_client, bundle_id, name):
    assert put(other_client, name, bundle_id=bundle_id).status_code == 404


def test_every_wish_wakes_the_controller(gateway, client, bundle_id, name):
    with gateway.redis.pubsub(ignore_subscribe_messages=True) as wake:
        wake.subscribe(WAKE)
        wait_until(lambda: wake.get_message(timeout=0.1) is None)
        endpoint = put(client, name, bundle_id=bundle_id).json()

        def woken():
            return (wake.get_message(timeout=0.1) or {}).get("data") == endpoint["id"].encode()

        wait_until(woken)
        assert client.post(f"/v1/endpoints/{name}/restart").status_code == 202
        wait_until(woken)
        assert client.delete(f"/v1/endpoints/{name}").status_code == 202
        wait_until(woken)


def test_versions_can_be_listed_and_taken_back(client, bundle_id, name):
    put(client, name, bundle_id=bundle_id, max_workers=1)
    put(client, name, bundle_id=bundle_id, max_workers=2)
    back = client.post(f"/v1/endpoints/{name}/rollback", json={"version": 1}).json()
    assert (back["wanted_version"], back["spec"]["max_workers"]) == (3, 1)
    versions = client.get(f"/v1/endpoints/{name}/versions").json()["versions"]
    assert [(each["number"], each["spec"]["max_workers"]) for each in versions] == [(3, 1), (2, 2), (1, 1)]
    assert client.post(f"/v1/endpoints/{name}/rollback", json={"version": 9}).status_code == 404
    assert client.post(f"/v1/endpoints/{name}/rollback", json={}).status_code == 422


def test_a_restart_is_a_new_version_of_the_same_description(client, bundle_id, name):
    first = put(client, name, bundle_id=bundle_id).json()
    again = client.post(f"/v1/endpoints/{name}/restart").json()
    assert (again["wanted_version"], again["spec"]) == (2, first["spec"])


def test_a_deleted_endpoint_says_so_until_it_is_gone(client, bundle_id, name):
    put(client, name, bundle_id=bundle_id)
    assert client.delete(f"/v1/endpoints/{name}").json()["status"] == "deleting"
    assert client.delete(f"/v1/endpoints/{name}").status_code == 202
    assert put(client, name, bundle_id=bundle_id).status_code == 409


def test_a_call_right_after_deploying_waits_although_the_table_does_not_have_it_yet(client, bundle_id, name):
    put(client, name, bundle_id=bundle_id)
    response = client.post(f"/v1/endpoints/{name}/predict", json={}, headers={"X-Brinery-Timeout-Seconds": "0.2"})
    assert (response.status_code, "building" in response.json()["error"]["message"]) == (504, True)
    assert client.post(f"/v1/endpoints/{name}/tasks", json={}).status_code == 202


def test_the_kept_events_of_an_endpoint_are_read_once(gateway, client, bundle_id, name):
    endpoint = put(client, name, bundle_id=bundle_id).json()
    event_log.append(gateway.redis, endpoint["id"], version=1, kind="build", text="Installing größe\n  line two")
    event_log.append(gateway.redis, endpoint["id"], version=1, kind="status", text="starting")
    response = client.get(f"/v1/endpoints/{name}/events")
    events = [data for _, data in events_of(response.text)]
    assert [(each["kind"], each["text"], each["version"]) for each in events] == [
        ("build", "Installing größe\n  line two", 1),
        ("status", "starting", 1),
    ]
    rest = client.get(f"/v1/endpoints/{name}/events", headers={"Last-Event-ID": events[0]["id"]})
    assert [data["text"] for _, data in events_of(rest.text)] == ["starting"]


def follow(client, name, version):
    return events_of(client.get(f"/v1/endpoints/{name}/events", params={"follow": True, "version": version}).text)


@pytest.mark.parametrize("outcome", [EndpointStatus.READY, EndpointStatus.FAILED])
def test_who_follows_a_version_learns_how_it_ends(gateway, client, bundle_id, name, outcome):
    endpoint = put(client, name, bundle_id=bundle_id).json()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(follow, client, name, 1)
        event_log.append(gateway.redis, endpoint["id"], version=1, kind="build", text="one line")
        event_log.append(gateway.redis, endpoint["id"], version=7, kind="build", text="of another version")
        gateway.store.advance(endpoint["id"], 1, version=(outcome, "because"))
        event_log.append(gateway.redis, endpoint["id"], version=1, kind="status", text=outcome)
        events = answer.result(30)
    texts = [data["text"] for event, data in events[:-1] if event == "message"]
    assert texts[0] == "one line"
    assert "of another version" not in texts
    assert events[-1] == ("done", {"status": outcome, "reason": "because"})
    assert follow(client, name, 1)[-1] == events[-1]  # also for one who comes later


def test_who_follows_a_version_learns_that_another_took_its_place(client, bundle_id, name):
    put(client, name, bundle_id=bundle_id)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(follow, client, name, 1)
        put(client, name, bundle_id=bundle_id, max_workers=2)
        ((event, data),) = answer.result(30)
    assert (event, data["status"]) == ("done", "superseded")
    assert client.get(f"/v1/endpoints/{name}/events", params={"version": 9}).status_code == 404


def test_logs_of_an_endpoint_without_workers_are_empty(client, bundle_id, name):
    put(client, name, bundle_id=bundle_id)
    response = client.get(f"/v1/endpoints/{name}/logs")
    assert (response.status_code, response.text) == (200, "")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
