"""Tasks through a real gateway; the test itself is the forwarder that claims and finishes them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from stub_worker import events_of, wait_until
from task_forwarder import submit

from brinery.errors import RemoteError
from brinery.spec import CONTENT_PICKLE, INLINE_BYTES, EndpointStatus, TaskStatus, new_id
from brinery_platform.objects import open_objects
from brinery_platform.tasks import Tasks

SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}


@pytest.fixture
def objects(gateway):
    return open_objects(gateway.settings.objects)


def test_a_task_is_accepted_before_any_worker_is_there_and_its_result_comes_raw(client, deploy, forwarder):
    endpoint = deploy(timeout_seconds=7, max_attempts=5)
    task = submit(client, endpoint)
    assert (task["status"], task["endpoint"], task["endpoint_id"]) == ("queued", endpoint.name, endpoint.id)
    assert (task["attempt"], task["max_attempts"], task["priority"]) == (0, 5, 4)
    assert "result" not in task
    raw = b'{"spaces":   1.50, "big": 123456789012345678901234567890}'
    forwarder.finish(task["id"], result_type="application/json", result=raw)
    response = client.get(f"/v1/tasks/{task['id']}")
    assert raw in response.content
    assert (response.json()["status"], response.json()["attempt"]) == ("succeeded", 1)
    assert client.get(f"/v1/tasks/{task['id']}/result").content == raw


def test_a_long_poll_wakes_when_the_task_is_done(client, deploy, forwarder):
    task = submit(client, deploy())
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.get, f"/v1/tasks/{task['id']}", params={"wait_seconds": 60})
        claim = forwarder.claim(task["id"])
        assert not answer.done()
        forwarder.tasks.finish(claim, TaskStatus.SUCCEEDED, reason="", result_type="application/json", result=b"[1]")
        assert answer.result(30).json()["result"] == [1]  # long before its own end


def test_a_long_poll_that_sees_no_end_answers_how_it_stands(client, deploy):
    task = submit(client, deploy())
    answer = client.get(f"/v1/tasks/{task['id']}", params={"wait_seconds": 0.2})
    assert (answer.status_code, answer.json()["status"]) == (200, "queued")
    assert client.get(f"/v1/tasks/{task['id']}", params={"wait_seconds": 61}).status_code == 422


def test_putting_the_same_id_twice_makes_one_task(client, other_client, deploy):
    endpoint, task_id = deploy(), new_id("tsk")
    first = client.put(f"/v1/endpoints/{endpoint.name}/tasks/{task_id}", json={"x": 1})
    second = client.put(f"/v1/endpoints/{endpoint.name}/tasks/{task_id}", json={"x": 1})
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json() == second.json()
    different = client.put(f"/v1/endpoints/{endpoint.name}/tasks/{task_id}", json={"x": 2})
    assert (different.status_code, different.json()["error"]["type"]) == (409, "conflict")
    others = deploy(owner="bob")
    taken = other_client.put(f"/v1/endpoints/{others.name}/tasks/{task_id}", json={"x": 1})
    assert (taken.status_code, taken.json()["error"]["type"]) == (409, "conflict")


def test_an_idempotency_key_stands_for_the_arguments_it_came_with(client, deploy):
    endpoint = deploy()
    first = submit(client, endpoint, **{"Idempotency-Key": "q"})
    assert submit(client, endpoint, **{"Idempotency-Key": "q"})["id"] == first["id"]
    other = client.post(f"/v1/endpoints/{endpoint.name}/tasks", json={"x": 2}, headers={"Idempotency-Key": "q"})
    assert (other.status_code, other.json()["error"]["context"]) == (409, {"task_id": first["id"]})


def test_a_large_input_of_another_cannot_be_overwritten_by_its_id(client, other_client, deploy, objects, gateway):
    endpoint, others, task_id = deploy(), deploy(owner="bob"), new_id("tsk")
    pickled = {"Content-Type": CONTENT_PICKLE}
    mine, theirs = b"m" * (INLINE_BYTES + 1), b"t" * (INLINE_BYTES + 1)
    assert (
        client.put(f"/v1/endpoints/{endpoint.name}/tasks/{task_id}", content=mine, headers=pickled).status_code == 202
    )
    refused = other_client.put(f"/v1/endpoints/{others.name}/tasks/{task_id}", content=theirs, headers=pickled)
    assert refused.status_code == 409
    key = Tasks(gateway.redis).get(task_id).input_object
    assert objects.get(key) == mine


@pytest.mark.parametrize("task_id", ["tsk_", "task_1", "tsk_a.b", "tsk_" + "a" * 61])
def test_an_id_that_is_none_is_refused(client, deploy, task_id):
    response = client.put(f"/v1/endpoints/{deploy().name}/tasks/{task_id}", json={"x": 1})
    assert response.status_code == 422


def test_options_come_as_headers(client, deploy, gateway):
    endpoint = deploy()
    headers = {
        "X-Brinery-Priority": "9",
        "X-Brinery-Timeout-Seconds": "1.5",
        "X-Brinery-Max-Attempts": "2",
        "X-Brinery-Expires-In-Seconds": "60",
        "Idempotency-Key": "once",
    }
    task = submit(client, endpoint, **headers)
    record = Tasks(gateway.redis).get(task["id"])
    assert (record.priority, record.timeout_seconds, record.max_attempts) == (9, 1.5, 2)
    assert record.expires_at - record.created_at == pytest.approx(60, abs=0.01)
    assert submit(client, endpoint, **headers)["id"] == task["id"]


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Brinery-Priority": "10"},
        {"X-Brinery-Priority": "high"},
        {"X-Brinery-Timeout-Seconds": "0"},
        {"X-Brinery-Max-Attempts": "0"},
        {"Idempotency-Key": "k" * 201},
    ],
)
def test_an_option_that_is_wrong_is_refused_with_its_name(client, deploy, headers):
    response = client.post(f"/v1/endpoints/{deploy().name}/tasks", json={"x": 1}, headers=headers)
    assert (response.status_code, response.json()["error"]["type"]) == (422, "invalid_request")
    assert "task options" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b'{"x": "one"}', "application/json", 422),
        (b"[1]", "application/json", 422),
        (b"{", "application/json", 422),
        (b"x=1", "application/x-www-form-urlencoded", 415),
    ],
)
def test_arguments_that_cannot_work_are_refused_on_acceptance(client, deploy, body, kind, status):
    endpoint = deploy(schema=SCHEMA)
    response = client.post(f"/v1/endpoints/{endpoint.name}/tasks", content=body, headers={"Content-Type": kind})
    assert response.status_code == status
    assert client.get("/v1/tasks", params={"endpoint": endpoint.name}).json()["tasks"] == []


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({"x": 1, "y": 2}, "y", "there is no 'y'; there are point, x."),
        ({"x": 1, "point": {"z": 0}}, "point.z", "there is no 'z' in point; there are lat."),
        ({"point": {}}, "x", "x is missing."),
    ],
)
def test_arguments_that_there_are_not_are_answered_with_those_that_there_are(client, deploy, body, field, says):
    point = {"type": "object", "properties": {"lat": {}}, "additionalProperties": False}
    properties = {"x": {"type": "integer"}, "point": point}
    endpoint = deploy(schema={**SCHEMA, "properties": properties, "additionalProperties": False})
    response = client.post(f"/v1/endpoints/{endpoint.name}/tasks", json=body)
    assert (response.status_code, response.json()["error"]["context"]) == (422, {"field": field})
    assert response.json()["error"]["message"] == f"arguments: {says}"


def test_a_large_input_lies_in_the_object_store(client, deploy, gateway, objects):
    body = b'{"x": 1, "pad": "' + b"a" * INLINE_BYTES + b'"}'
    task = submit(client, deploy(), body)
    assert len(gateway.inputs_of(task["id"])) == 1
    record = Tasks(gateway.redis).get(task["id"])
    assert record.input is None
    assert objects.get(record.input_object) == body


def test_a_full_queue_refuses_and_leaves_no_input_behind(client, deploy, gateway):
    endpoint = deploy(max_queued=1)
    submit(client, endpoint)
    task_id = new_id("tsk")
    response = client.put(
        f"/v1/endpoints/{endpoint.name}/tasks/{task_id}",
        content=b"p" * (INLINE_BYTES + 1),
        headers={"Content-Type": CONTENT_PICKLE},
    )
    assert (response.status_code, response.json()["error"]["type"]) == (429, "overloaded")
    assert response.headers["retry-after"]
    assert not gateway.inputs_of(task_id)


def test_a_large_result_is_fetched_whole_or_in_parts(client, deploy, forwarder, objects):
    task = submit(client, deploy())
    data = bytes(range(256)) * 1024
    claim = forwarder.claim(task["id"])
    objects.put("results/large", data)
    forwarder.tasks.finish(
        claim, TaskStatus.SUCCEEDED, reason="", result_type="text/html", result_object="results/large"
    )
    shown = client.get(f"/v1/tasks/{task['id']}").json()
    assert (shown["result_inline"], shown["result_type"]) == (False, "text/html")
    url = f"/v1/tasks/{task['id']}/result"
    whole = client.get(url)
    assert (whole.status_code, whole.content) == (200, data)
    assert whole.headers["content-type"] == "application/octet-stream"
    part = client.get(url, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, data[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(data)}"
    assert client.get(url, headers={"Range": "bytes=-5"}).content == data[-5:]
    assert client.get(url, headers={"Range": "lines=1-2"}).content == data


def test_the_result_of_a_failed_task_is_its_own_error(client, deploy, forwarder):
    task = submit(client, deploy())
    url = f"/v1/tasks/{task['id']}/result"
    early = client.get(url)
    assert (early.status_code, early.json()["error"]["type"]) == (409, "conflict")
    error = RemoteError("no such flower", exception_type="KeyError", exception_bases=["KeyError"], traceback="…")
    forwarder.finish(task["id"], TaskStatus.FAILED, error=error.to_json()["error"])
    shown = client.get(f"/v1/tasks/{task['id']}").json()
    assert (shown["status"], shown["error"]["type"], shown["error"]["message"]) == (
        "failed",
        "remote",
        "no such flower",
    )
    late = client.get(url)
    assert (late.status_code, late.json()["error"]) == (500, shown["error"])


def test_a_failed_task_is_queued_again_and_no_other(client, other_client, deploy, forwarder):
    task = submit(client, deploy())
    path = f"/v1/tasks/{task['id']}/requeue"
    assert client.post(path).status_code == 409
    forwarder.finish(task["id"], TaskStatus.FAILED, error=RemoteError("no").to_json()["error"], dead=True)
    assert other_client.post(path).status_code == 404
    again = client.post(path)
    shown = again.json()
    assert (again.status_code, shown["status"], shown["attempt"], shown["max_attempts"]) == (202, "queued", 1, 4)
    forwarder.finish(task["id"], result_type="application/json", result=b"1")
    assert client.get(f"/v1/tasks/{task['id']}").json()["result"] == 1


def test_a_queued_task_is_cancelled_at_once(client, deploy):
    task = submit(client, deploy())
    cancelled = client.delete(f"/v1/tasks/{task['id']}")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    again = client.delete(f"/v1/tasks/{task['id']}")
    assert (again.status_code, again.json()["status"]) == (200, "cancelled")
    result = client.get(f"/v1/tasks/{task['id']}/result")
    assert (result.status_code, result.json()["error"]["type"]) == (409, "task_cancelled")


def test_the_changes_of_a_task_stream_until_it_is_final(client, deploy, forwarder):
    task = submit(client, deploy())
    url = f"/v1/tasks/{task['id']}/events"
    seen = []
    with client.stream("GET", url) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        text = response.iter_text()
        seen.append(next(text))
        forwarder.finish(task["id"], result_type="application/json", result=b"1")
        seen += list(text)
    statuses = [data["status"] for _, data in events_of("".join(seen))]
    assert statuses == ["queued", "running", "succeeded"]
    first_id = "".join(seen).partition("id: ")[2].partition("\n")[0]
    rest = client.get(url, headers={"Last-Event-ID": first_id})
    assert [data["status"] for _, data in events_of(rest.text)] == ["running", "succeeded"]
    assert client.get(url, headers={"Last-Event-ID": "yesterday"}).status_code == 422


def test_tasks_are_listed_newest_first_by_endpoint_and_status_page_by_page(client, deploy, forwarder):
    endpoint = deploy()
    ids = [submit(client, endpoint)["id"] for _ in range(3)]
    submit(client, deploy())
    forwarder.finish(ids[0], result_type="application/json", result=b"1")
    listed = client.get("/v1/tasks", params={"endpoint": endpoint.name}).json()["tasks"]
    assert [task["id"] for task in listed] == ids[::-1]
    params = {"endpoint": endpoint.name, "status": "queued", "limit": 1}
    page = client.get("/v1/tasks", params=params).json()
    assert [task["id"] for task in page["tasks"]] == [ids[2]]
    page = client.get("/v1/tasks", params={**params, "cursor": page["cursor"]}).json()
    assert [task["id"] for task in page["tasks"]] == [ids[1]]
    for params in ({"cursor": "x"}, {"cursor": "²"}, {"status": "lost"}, {"status": ["queued", "lost"]}):
        assert client.get("/v1/tasks", params=params).status_code == 422


def test_tasks_of_several_statuses_are_listed_in_one_order(client, deploy, forwarder):
    endpoint = deploy()
    ids = [submit(client, endpoint)["id"] for _ in range(4)]
    forwarder.finish(ids[0], result_type="application/json", result=b"1")
    forwarder.finish(ids[2], TaskStatus.FAILED, error=RemoteError("no").to_json()["error"])

    def listed(*statuses, limit=100):
        found, params = [], {"endpoint": endpoint.name, "status": statuses, "limit": limit}
        while True:
            page = client.get("/v1/tasks", params=params).json()
            found += [ids.index(task["id"]) for task in page["tasks"]]
            if page["cursor"] is None:
                return found
            params["cursor"] = page["cursor"]

    assert listed("queued", "failed") == listed("failed", "queued", "failed", limit=1) == [3, 2, 1]
    assert listed("succeeded", "failed") == [2, 0]
    assert listed("failed") == [2]
    assert listed() == [3, 2, 1, 0]


def test_a_filter_that_there_is_not_is_refused_and_the_others_are_named(client, gateway):
    answer = client.get("/v1/tasks", params={"state": "failed"})
    assert (answer.status_code, answer.json()["error"]["context"]) == (422, {"field": "state"})
    for known in ("endpoint", "status", "dead", "cursor", "limit"):
        assert known in answer.json()["error"]["message"]
    assert httpx.get(f"{gateway.url}/v1/tasks?state=failed", trust_env=False).status_code == 401


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"ids": ["tsk_1",]}', "(char 17)"),
        (b'{"ids": ', "(char 8)"),
        (b'{"ids": ["\xff"]}', "no UTF-8"),
        (b'{"ids": []}', "ids: "),
    ],
)
def test_a_body_that_cannot_be_read_is_refused_alike_on_every_route(client, body, says):
    answer = client.post("/v1/tasks/events", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (422, "invalid_request")
    assert says in answer.json()["error"]["message"]


def test_tasks_of_an_endpoint_that_is_deleted_say_why_they_were_cancelled(client, deploy, forwarder):
    endpoint = deploy()
    queued, running, mine, done = (submit(client, endpoint)["id"] for _ in range(4))
    claim = forwarder.claim(running)
    forwarder.finish(done, result_type="application/json", result=b"1")
    client.delete(f"/v1/tasks/{mine}")
    assert forwarder.tasks.forget_endpoint(endpoint.id) == 1
    assert client.get(f"/v1/tasks/{running}").json()["error"] is None, "it goes on until its forwarder has stopped it"
    forwarder.tasks.finish(claim, TaskStatus.CANCELLED, reason="cancelled")
    for task_id in (queued, running):
        task = client.get(f"/v1/tasks/{task_id}").json()
        assert (task["status"], task["error"]["type"]) == ("cancelled", "task_cancelled")
        assert "endpoint was deleted" in task["error"]["message"]
        assert "endpoint was deleted" in client.get(f"/v1/tasks/{task_id}/result").json()["error"]["message"]
    assert [client.get(f"/v1/tasks/{task_id}").json()["error"] for task_id in (mine, done)] == [None, None]


def test_a_task_that_ends_before_the_deletion_reaches_it_shows_no_error(client, deploy, forwarder):
    endpoint = deploy()
    task = submit(client, endpoint)
    claim = forwarder.claim(task["id"])
    forwarder.tasks.forget_endpoint(endpoint.id)
    forwarder.tasks.finish(claim, TaskStatus.SUCCEEDED, reason="", result_type="application/json", result=b"1")
    shown = client.get(f"/v1/tasks/{task['id']}").json()
    assert (shown["status"], shown["error"]) == ("succeeded", None)


@pytest.mark.parametrize("how", ["deleting", "gone"])
def test_a_failed_task_whose_endpoint_is_gone_is_not_queued_again(client, deploy, forwarder, how):
    endpoint = deploy()
    task = submit(client, endpoint)
    forwarder.finish(task["id"], TaskStatus.FAILED, error=RemoteError("no").to_json()["error"])
    if how == "gone":
        endpoint.remove()
    else:
        endpoint.serve(status=EndpointStatus.DELETING)
    path = f"/v1/tasks/{task['id']}"
    wait_until(lambda: how != "gone" or client.get(path).json()["endpoint"] is None)
    wait_until(lambda: how == "gone" or client.post(f"/v1/endpoints/{endpoint.name}/tasks", json={}).status_code == 409)
    answer = client.post(f"{path}/requeue")
    assert (answer.status_code, answer.json()["error"]["type"]) == (409, "conflict")
    assert "endpoint was deleted" in answer.json()["error"]["message"]
    assert client.get(path).json()["status"] == "failed"


def test_a_call_that_prefers_to_be_answered_later_becomes_a_task(client, worker, deploy):
    one = worker()
    endpoint = deploy(one)
    response = client.post(f"/v1/endpoints/{endpoint.name}/predict", json={"x": 1}, headers={"Prefer": "respond-async"})
    assert (response.status_code, response.json()["status"]) == (202, "queued")
    assert response.headers["location"] == f"/v1/tasks/{response.json()['id']}"
    assert response.headers["x-brinery-request-id"]
    assert not one.seen


def test_anothers_task_cannot_be_told_from_one_that_does_not_exist(client, other_client, deploy):
    endpoint, missing = deploy(), new_id("tsk")
    task_id = submit(client, endpoint)["id"]
    for method, path in (("GET", ""), ("GET", "/result"), ("GET", "/events"), ("DELETE", "")):
        theirs = other_client.request(method, f"/v1/tasks/{task_id}{path}")
        nobodys = other_client.request(method, f"/v1/tasks/{missing}{path}")
        assert (theirs.status_code, nobodys.status_code) == (404, 404)
        assert theirs.text.replace(task_id, "ID") == nobodys.text.replace(missing, "ID")
    assert other_client.get("/v1/tasks").json()["tasks"] == []
    assert client.get(f"/v1/tasks/{task_id}").json()["status"] == "queued"


def test_an_endpoint_that_is_being_deleted_takes_no_tasks(client, deploy):
    endpoint = deploy(status=EndpointStatus.DELETING)
    response = client.post(f"/v1/endpoints/{endpoint.name}/tasks", json={"x": 1})
    assert (response.status_code, response.json()["error"]["type"]) == (409, "conflict")


def test_many_long_polls_share_one_subscription(gateway, client, deploy, forwarder):
    endpoint = deploy()
    ids = [submit(client, endpoint)["id"] for _ in range(20)]
    answers = []

    def wait(task_id):
        answers.append(client.get(f"/v1/tasks/{task_id}", params={"wait_seconds": 60}).json()["status"])

    callers = [threading.Thread(target=wait, args=(task_id,)) for task_id in ids]
    for caller in callers:
        caller.start()
    wait_until(lambda: gateway.redis.pubsub_numsub("done")[0][1])
    for task_id in ids:
        assert gateway.redis.pubsub_numsub("done") == [(b"done", 1)]
        forwarder.finish(task_id, result_type="application/json", result=b"1")
    for caller in callers:
        caller.join(30)
    assert answers == ["succeeded"] * 20
