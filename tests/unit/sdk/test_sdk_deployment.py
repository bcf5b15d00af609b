"""Deploying: what does not fit is refused before it is sent; events are followed however often they break off."""

import sys

import pytest

from brinery import DeploymentError, InvalidRequestError, NotFoundError, PackingError, UnavailableError, endpoint
from brinery.spec import EndpointStatus


@endpoint(max_workers=3, requirements=["numpy"], env={"A": "b"})
def shout(text: str) -> str:
    return text.upper()


def event(text, **more):
    return {"at": 1.0, "version": 1, "kind": "build", "text": text, **more}


def requested(gateway):
    return [f"{method} {path}" for method, path, _ in gateway.requests]


def test_deploy_packs_uploads_asks_and_follows_until_it_is_ready(gateway, client):
    gateway.events = [event("resolving"), event("installing")]
    seen = []
    deployment = shout.deploy(client=client, progress=seen.append)
    assert (deployment.name, deployment.version, deployment.status) == ("shout", 1, EndpointStatus.READY)
    assert deployment.url == f"{gateway.url}/v1/endpoints/shout/predict"
    spec = gateway.endpoints["shout"]["spec"]
    assert (spec["max_workers"], spec["env"], spec["bundle_id"]) == (3, {"A": "b"}, "bun_0")
    assert "name" not in spec
    assert [one["text"] for one in seen][1:] == ["resolving", "installing"]
    assert seen[0]["text"].startswith("Packed shout")


def test_without_waiting_nothing_is_followed(gateway, client):
    assert shout.deploy(client=client, wait=False).status is EndpointStatus.BUILDING
    assert not [line for line in requested(gateway) if line.endswith("/events")]


def test_events_that_break_off_are_followed_again_and_told_once(gateway, client):
    gateway.events = [event("one"), event("two", cut=True), event("three", cut=True), event("four")]
    gateway.drops.append("GET /v1/endpoints/shout/events")
    seen = []
    shout.deploy(client=client, progress=seen.append)
    assert [one["text"] for one in seen][1:] == ["one", "two", "three", "four"]


def test_an_endpoint_that_cannot_become_ready_raises_the_reason(gateway, client):
    gateway.outcome = {"status": "failed", "reason": "No solution found: click>9000"}
    with pytest.raises(DeploymentError, match="click>9000"):
        shout.deploy(client=client)


def test_a_python_that_no_worker_has_is_refused_before_anything_is_sent(gateway, client):
    gateway.info["python"] = ["3.98", "3.99"]
    with pytest.raises(PackingError, match=r"workers have 3\.98, 3\.99.*Python 3\.99"):
        shout.deploy(client=client)
    assert requested(gateway) == ["GET /v1/info"]


def test_a_cloudpickle_newer_than_the_workers_is_refused_with_the_command_that_helps(gateway, client):
    gateway.info["cloudpickle"] = "2.2.1"
    with pytest.raises(PackingError) as caught:
        shout.deploy(client=client)
    assert f"{sys.executable} -m pip install 'cloudpickle==2.2.1'" in caught.value.message
    assert requested(gateway) == ["GET /v1/info"]


def test_a_wrong_setting_is_refused_before_anything_is_sent(gateway, client):
    with pytest.raises(InvalidRequestError, match="max_workers"):
        endpoint(shout.target, max_workers=-1).deploy(client=client)
    assert not gateway.requests


@pytest.mark.parametrize(
    ("choices", "field"),
    [
        ({"metadata": {"a": object()}}, "metadata.a"),
        ({"metadata": {"a": float("nan")}}, "metadata.a"),
        ({"env": {"A": 1}}, "env.A"),
    ],
)
def test_a_setting_that_json_cannot_carry_is_named_with_its_key(gateway, client, choices, field):
    with pytest.raises(InvalidRequestError, match=f"'shout'.*{field}"):
        endpoint(shout.target, **choices).deploy(client=client)
    assert not gateway.requests


def test_code_that_serves_already_is_one_line_and_follows_nothing(gateway, client, monkeypatch):
    gateway.events, seen = [event("old")], []
    ready = {"wanted_version": 4, "serving_version": 4, "status": "ready"}
    monkeypatch.setattr(client, "put_endpoint", lambda *_: ready)
    deployment = shout.deploy(client=client, progress=seen.append)
    assert (deployment.version, deployment.status) == (4, EndpointStatus.READY)
    assert [one["text"] for one in seen][1:] == ["Unchanged; version 4 already serves."]


def test_what_the_platform_refuses_keeps_its_class(gateway, client):
    gateway.bundles.clear()
    gateway.drops.append("POST /v1/bundles")
    with pytest.raises(UnavailableError):
        shout.deploy(client=client)
    assert not gateway.endpoints
    with pytest.raises(NotFoundError):
        client.endpoint("shout")
