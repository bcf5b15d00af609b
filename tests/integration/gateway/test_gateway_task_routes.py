"""What tasks take along from request and endpoint, dead letters and payloads, and secrets that stay inside."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from stub_worker import wait_until
from task_forwarder import submit
from test_gateway_bundles import manifest, packed

from brinery.errors import RemoteError, WorkerError
from brinery.spec import CONTENT_BUNDLE, CONTENT_PICKLE, INLINE_BYTES, TaskStatus, Webhook, new_id
from brinery_platform.objects import open_objects
from brinery_platform.tasks import Tasks

PASSWORD = "hunter2-and-more"
HOOK = {"url": "https://example.org/hook", "username": "ann", "password": PASSWORD}
AT_ONCE = 20


def report(attempt, **more):
    return {
        "attempt": attempt,
        "charge": "full",
        "started_at": 1.5,
        "ended_at": 2.5,
        "reason": "worker",
        "worker_id": "wrk_1",
        "error": {"type": "worker", "message": "it died", "context": {}},
        "log_tail": "last words\n",
        **more,
    }


def bury(forwarder, task_id):
    """Let a task fail by the platform's fault, with one attempt noted."""
    forwarder.tasks.finish(
        forwarder.claim(task_id),
        TaskStatus.FAILED,
        reason="worker",
        dead=True,
        report=report(1),
        error=WorkerError("it died").to_json()["error"],
    )


# ------------------------------------------------------------------------------------------- what a task takes along
def test_options_of_a_task_stand_in_its_record(client, deploy, gateway):
    headers = {
        "X-Brinery-Retry-For": "ValueError, requests.exceptions.Timeout ,HTTP 503",
        "X-Brinery-Webhook": json.dumps(HOOK),
        "X-Brinery-Result-Ttl-Seconds": "90",
    }
    task = submit(client, deploy(), **headers)
    record = Tasks(gateway.redis).get(task["id"])
    assert record.retry_for == ["ValueError", "requests.exceptions.Timeout", "HTTP 503"] == task["retry_for"]
    assert record.webhook == HOOK
    assert record.result_ttl_seconds == 90


def test_a_webhook_may_be_a_bare_url(client, deploy, gateway):
    task = submit(client, deploy(), **{"X-Brinery-Webhook": "http://example.org:8080/hook?a={b}"})
    record = Tasks(gateway.redis).get(task["id"])
    assert record.webhook == {"url": "http://example.org:8080/hook?a={b}", "username": "", "password": ""}
    assert "username" not in task["webhook"]


def test_a_task_takes_its_endpoints_values_unless_it_has_its_own(client, deploy, gateway):
    endpoint = deploy(
        retry_for=["KeyError"], webhook=Webhook(**HOOK), priority_age_seconds=7.0, result_ttl_seconds=77.0
    )
    record = Tasks(gateway.redis).get(submit(client, endpoint)["id"])
    assert (record.retry_for, record.webhook) == (["KeyError"], HOOK)
    assert (record.priority_age_seconds, record.result_ttl_seconds) == (7.0, 77.0)
    own = {"X-Brinery-Retry-For": "", "X-Brinery-Webhook": "https://example.net/"}
    record = Tasks(gateway.redis).get(submit(client, endpoint, **own)["id"])
    assert (record.retry_for, record.webhook["url"]) == ([], "https://example.net/")


@pytest.mark.parametrize(
    ("header", "value", "says"),
    [
        ("X-Brinery-Retry-For", "not a name", "retry_for"),
        ("X-Brinery-Retry-For", "HTTP 200", "retry_for"),
        ("X-Brinery-Retry-For", ",".join(["ValueError"] * 21), "at most 20"),
        ("X-Brinery-Webhook", "ftp://example.org/", "webhook"),
        ("X-Brinery-Webhook", f"https://ann:{PASSWORD}@example.org/", "webhook"),
        ("X-Brinery-Webhook", f'{{"url": "https://example.org", "password": "{PASSWORD}"', "X-Brinery-Webhook"),
        ("X-Brinery-Webhook", f'{{"password": "{PASSWORD}"}}', "webhook.url"),
        ("X-Brinery-Webhook", f'{{"url": "https://example.org", "secret": "{PASSWORD}"}}', "webhook.secret"),
        ("X-Brinery-Webhook", f'{{"url": "https://example.org", "password": "{PASSWORD * 50}"}}', "webhook.password"),
        ("X-Brinery-Webhook", "https://example.org/" + "x" * 2000, "webhook.url"),
        ("X-Brinery-Result-Ttl-Seconds", "0", "result_ttl_seconds"),
        ("X-Brinery-Result-Ttl-Seconds", "nan", "result_ttl_seconds"),
        ("X-Brinery-Expires-In-Seconds", "soon", "expires_in_seconds"),
        *(("X-Brinery-Expires-In-Seconds", text, "finite number") for text in ("inf", "1e400", "Infinity")),
        ("X-Brinery-Result-Ttl-Seconds", "1e308", "less than or equal to 315360000"),
        ("X-Brinery-Expires-In-Seconds", "1_0", "'1_0' is no number; write its digits without '_'"),
        ("X-Brinery-Priority", "0_9", "'0_9' is no number"),
        *(("X-Brinery-Retry-For", text, "such as 'HTTP 503'") for text in ("HTTP", "HTTP503", "http_503")),
        ("X-Brinery-Webhook", "http://a b/", "without blanks"),
        ("X-Brinery-Webhook", f'{{"url": "https://example.org", "password": "{PASSWORD}"}}', "needs a username"),
    ],
)
def test_an_option_that_cannot_be_is_refused_in_one_sentence(client, deploy, header, value, says):
    response = client.post(f"/v1/endpoints/{deploy().name}/tasks", json={}, headers={header: value})
    assert (response.status_code, response.json()["error"]["type"]) == (422, "invalid_request")
    assert says in response.json()["error"]["message"]
    assert PASSWORD not in response.text


@pytest.mark.parametrize("seconds", ["61", "-1", "nan", "inf", "soon", ""])
def test_a_wait_that_cannot_be_is_refused(client, deploy, seconds):
    task = submit(client, deploy())
    response = client.get(f"/v1/tasks/{task['id']}?wait_seconds={seconds}")
    assert (response.status_code, response.json()["error"]["context"]) == (422, {"field": "wait_seconds"})


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/endpoints/x/tasks"), ("PUT", "/v1/endpoints/x/tasks/tsk_1"), ("GET", "/v1/tasks/tsk_1")],
)
def test_routes_in_front_of_fastapi_authorize_first_and_answer_errors_alike(gateway, client, method, path):
    bare = httpx.request(method, gateway.url + path, content=b"{", trust_env=False)
    assert (bare.status_code, bare.headers["www-authenticate"]) == (401, "Bearer")
    assert bare.json()["error"]["type"] == "authentication"
    assert "`Authorization: Bearer <key>`" in bare.json()["error"]["message"]
    assert "``" not in bare.json()["error"]["message"]
    missing = client.request(method, path, content=b"{}")
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found")
    for response in (bare, missing):
        assert response.headers["x-brinery-request-id"].startswith("req_")
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["content-type"] == "application/json"


def test_accepted_and_refused_tasks_are_counted(client, deploy):
    endpoint = deploy(max_queued=1)
    submit(client, endpoint)
    client.post(f"/v1/endpoints/{endpoint.name}/tasks", json={})
    text = client.get("/metrics").text
    for status in ("2xx", "4xx"):
        counted = f'brinery_submissions_total{{endpoint="{endpoint.name}",owner="ann",status="{status}"}} 1.0'
        assert counted in text


def test_phases_tell_when_what_was_done(client, deploy, forwarder):
    task = submit(client, deploy())
    assert task["phases"]["queued"] == pytest.approx(task["created_at"], abs=5)
    assert [task["phases"][name] for name in ("claimed", "sent", "answered", "stored", "finished")] == [None] * 5
    claim = forwarder.claim(task["id"])
    forwarder.tasks.finish(claim, TaskStatus.SUCCEEDED, reason="", result_type="application/json", result=b"1")
    phases = client.get(f"/v1/tasks/{task['id']}").json()["phases"]
    assert phases["queued"] <= phases["claimed"] <= phases["finished"]


# ------------------------------------------------------------------------------------------------ submitted at once
@pytest.mark.parametrize("by", ["id", "idempotency key"])
def test_submissions_that_arrive_at_once_make_one_task(client, deploy, by):
    endpoint = deploy()
    task_id, key = new_id("tsk"), new_id("req")
    together = threading.Barrier(AT_ONCE)

    def one(_number):
        together.wait(30)
        path = f"/v1/endpoints/{endpoint.name}/tasks"
        if by == "id":
            return client.put(f"{path}/{task_id}", json={"x": 1})
        return client.post(path, json={"x": 1}, headers={"Idempotency-Key": key})

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(one, range(AT_ONCE)))
    assert {answer.status_code for answer in answers} == {202}
    (accepted,) = {answer.json()["id"] for answer in answers}
    listed = client.get("/v1/tasks", params={"endpoint": endpoint.name}).json()["tasks"]
    assert [task["id"] for task in listed] == [accepted]


def test_a_full_queue_answers_when_to_come_again_and_takes_the_next_when_there_is_room(client, deploy):
    endpoint = deploy(max_queued=2)
    first, _ = submit(client, endpoint), submit(client, endpoint)
    refused = client.post(f"/v1/endpoints/{endpoint.name}/tasks", json={"x": 1})
    assert (refused.status_code, refused.json()["error"]["type"]) == (429, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    client.delete(f"/v1/tasks/{first['id']}")
    submit(client, endpoint)


# ----------------------------------------------------------------------------------------------------- dead letters
def test_dead_letters_are_listed_page_by_page_for_their_owner_only(client, other_client, deploy, forwarder):
    endpoint, another = deploy(), deploy()
    ids = [submit(client, endpoint)["id"] for _ in range(3)]
    elsewhere = submit(client, another)["id"]
    alive = submit(client, endpoint)["id"]
    for task_id in (*ids, elsewhere):
        bury(forwarder, task_id)
    params = {"dead": "true", "endpoint": endpoint.name, "limit": 2}
    page = client.get("/v1/tasks", params=params).json()
    assert [task["id"] for task in page["tasks"]] == [ids[2], ids[1]]
    page = client.get("/v1/tasks", params={**params, "cursor": page["cursor"]}).json()
    assert ([task["id"] for task in page["tasks"]], page["cursor"]) == ([ids[0]], None)
    everywhere = client.get("/v1/tasks", params={"dead": "true"}).json()["tasks"]
    assert {elsewhere, *ids} <= {task["id"] for task in everywhere}
    assert alive not in {task["id"] for task in everywhere}
    assert other_client.get("/v1/tasks", params={"dead": "true"}).json()["tasks"] == []
    assert other_client.get("/v1/tasks", params=params).status_code == 404
    assert client.get("/v1/tasks", params={**params, "status": "queued"}).status_code == 422
    assert client.get("/v1/tasks", params={**params, "status": "failed"}).status_code == 200


def test_a_listing_carries_neither_inputs_nor_results_nor_secrets(client, deploy, forwarder):
    endpoint = deploy()
    task = submit(client, endpoint, b'{"x": "my input"}', **{"X-Brinery-Webhook": json.dumps(HOOK)})
    forwarder.finish(task["id"], result_type="application/json", result=b'"my result"')
    listed = client.get("/v1/tasks", params={"endpoint": endpoint.name})
    assert [each["status"] for each in listed.json()["tasks"]] == ["succeeded"]
    for secret in ("my input", "my result", PASSWORD):
        assert secret not in listed.text


def test_the_attempts_of_a_dead_letter_say_what_went_wrong(client, other_client, deploy, forwarder):
    task = submit(client, deploy())
    url = f"/v1/tasks/{task['id']}/attempts"
    assert client.get(url).json() == {"attempts": []}
    bury(forwarder, task["id"])
    assert client.get(url).json() == {"attempts": [report(1)]}
    assert other_client.get(url).status_code == 404


def test_a_final_task_is_dropped_with_what_it_left_and_no_other(client, other_client, deploy, forwarder, gateway):
    endpoint, objects = deploy(), open_objects(gateway.settings.objects)
    task = submit(client, endpoint, b"p" * (INLINE_BYTES + 1), CONTENT_PICKLE)
    url = f"/v1/tasks/{task['id']}"
    early = client.post(f"{url}/drop")
    assert (early.status_code, early.json()["error"]["type"]) == (409, "conflict")
    bury(forwarder, task["id"])
    assert other_client.post(f"{url}/drop").status_code == 404
    dropped = client.post(f"{url}/drop")
    assert (dropped.status_code, dropped.json()) == (202, {"id": task["id"], "status": "dropped"})
    params = {"dead": "true", "endpoint": endpoint.name}
    assert client.get("/v1/tasks", params=params).json()["tasks"] == []
    assert gateway.inputs_of(task["id"])

    def gone():
        forwarder.tasks.sweep(objects)
        return client.get(url).status_code == 404

    wait_until(gone)
    assert not gateway.inputs_of(task["id"])
    assert client.post(f"{url}/drop").status_code == 404


@pytest.mark.parametrize("size", [10, INLINE_BYTES + 1])
def test_the_input_of_a_task_comes_back_as_it_came(client, other_client, deploy, size):
    data = bytes(n % 251 for n in range(size))
    task = submit(client, deploy(), data, CONTENT_PICKLE)
    url = f"/v1/tasks/{task['id']}/input"
    whole = client.get(url)
    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, data, CONTENT_PICKLE)
    part = client.get(url, headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content) == (206, data[2:5])
    assert other_client.get(url).status_code == 404


# ---------------------------------------------------------------------------------------------------------- secrets
def test_a_webhooks_password_appears_in_no_reply_about_a_task(client, deploy, forwarder, gateway):
    endpoint = deploy(webhook=Webhook(**HOOK))
    path = f"/v1/endpoints/{endpoint.name}/tasks"
    texts = []

    def note(response):
        assert response.status_code < 300, response.text
        texts.append(response.text)
        return response.json() if response.headers["content-type"] == "application/json" else None

    by_endpoint = note(client.post(path, json={}))
    by_call = note(client.put(f"{path}/{new_id('tsk')}", json={}, headers={"X-Brinery-Webhook": json.dumps(HOOK)}))
    shown = {"url": HOOK["url"], "username": HOOK["username"], "status": "waiting", "attempts": 0}
    for task in (by_endpoint, by_call):
        url = f"/v1/tasks/{task['id']}"
        assert shown.items() <= task["webhook"].items()
        bury(forwarder, task["id"])
        assert note(client.get(url, params={"wait_seconds": 1}))["webhook"]["url"] == HOOK["url"]
        for more in ("/attempts", "/events", "/input"):
            note(client.get(url + more))
        note(client.post("/v1/tasks/events", json={"ids": [task["id"]]}))
        for query in ({}, {"dead": "true"}):
            note(client.get("/v1/tasks", params={"endpoint": endpoint.name, **query}))
        note(client.post(f"{url}/requeue"))
        note(client.delete(url))
        texts.append(client.get(f"{url}/result").text)
        note(client.post(f"{url}/drop"))
    assert HOOK["username"] in "".join(texts)
    assert PASSWORD not in "".join(texts)
    assert PASSWORD not in gateway.log()


def test_a_webhooks_password_appears_in_no_reply_about_an_endpoint(client, gateway):
    data = packed(manifest(requirements=[]), **{"sources/who": "hooked"})
    bundle_id = client.post("/v1/bundles", content=data, headers={"Content-Type": CONTENT_BUNDLE}).json()["id"]
    url = "/v1/endpoints/hooked"
    described = {"bundle_id": bundle_id, "webhook": HOOK}
    replies = [client.put(url, json=described), client.get(url), client.get("/v1/endpoints")]
    replies += [client.put(url, json={**described, "concurrency": 2}), client.get(f"{url}/versions")]
    replies += [client.post(f"{url}/rollback", json={"version": 1}), client.post(f"{url}/restart")]
    task = client.post(f"{url}/tasks", json={})
    assert Tasks(gateway.redis).get(task.json()["id"]).webhook == HOOK, "it works, through restart and rollback"
    replies += [task, client.delete(url)]
    for reply in replies:
        assert reply.status_code < 300, reply.text
        assert PASSWORD not in reply.text
    for reply in (replies[0], replies[1], replies[6]):
        assert reply.json()["spec"]["webhook"] == {"url": HOOK["url"], "username": HOOK["username"]}
    refused = client.put("/v1/endpoints/unhooked", json={**described, "webhook": {**HOOK, "url": "ftp://x"}})
    assert (refused.status_code, PASSWORD in refused.text) == (422, False)
    assert PASSWORD not in gateway.log()


def test_a_failed_task_of_the_users_own_is_no_dead_letter(client, deploy, forwarder):
    endpoint = deploy()
    task = submit(client, endpoint)
    forwarder.finish(task["id"], TaskStatus.FAILED, error=RemoteError("no").to_json()["error"])
    assert client.get("/v1/tasks", params={"dead": "true", "endpoint": endpoint.name}).json()["tasks"] == []
