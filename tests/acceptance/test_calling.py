"""A user calls what is deployed: now, later, as a stream, from Python and from anything that speaks HTTP."""

import httpx
import pytest


def test_every_form_answers_a_plain_remote_call(stack):
    assert stack.run("""
        import json
        from kit import Counter, add, countdown, triple
        print(json.dumps([add.remote(2, 3), add.remote(a=2)]
            + [Counter.remote(5), triple.remote(x=5), countdown.remote(3)]))
    """) == [5, 3, 105, 15, [3, 2, 1]]


def test_the_decorated_function_still_runs_here(stack):
    assert stack.run("""
        import json
        from kit import add, countdown
        print(json.dumps([add(2, 3), add.local(2), list(countdown(2))]))
    """) == [5, 3, [2, 1]]


def test_a_stream_yields_item_by_item_and_a_plain_function_yields_one(stack):
    assert stack.run("""
        import json
        from kit import add, countdown
        print(json.dumps([list(countdown.stream(3)), list(add.stream(1, 1))]))
    """) == [[3, 2, 1], [2]]


def test_futures_come_back_and_a_map_keeps_its_order(stack):
    assert stack.run("""
        import asyncio, json
        from kit import add
        future = add.submit(20, 22)

        async def wait():
            return await add.submit(1, 1)

        print(json.dumps([future.get(timeout=60), future.done(), future.status]
            + [asyncio.run(wait()), list(add.map(range(30)))]))
    """) == [42, True, "succeeded", 2, list(range(1, 31))]


def test_a_future_is_picked_up_by_its_id_in_another_process(stack):
    task_id = stack.run("""
        import json
        from kit import add
        print(json.dumps(add.submit(40, 2).id))
    """)
    assert (
        stack.run(f"""
        import json
        from brinery import Future
        print(json.dumps(Future.from_id({task_id!r}).get(timeout=60)))
    """)
        == 42
    )


@pytest.mark.parametrize("call", ["fail.remote('lost')", "fail.submit('lost').get(60)"])
def test_the_users_exception_comes_back_as_its_own(stack, call):
    error = stack.run(f"""
        import json
        from brinery.errors import RemoteError
        from kit import fail
        try:
            {call}
        except RemoteError as error:
            print(json.dumps({{"message": error.message, **error.context}}))
    """)
    assert (error["message"], error["exception_type"]) == ("lost", "LookupError")
    assert "Exception" in error["exception_bases"]
    assert "raise LookupError(text)" in error["traceback"]


@pytest.mark.parametrize("body", [{"a": "two"}, {}, {"a": 1, "c": 2}, [1, 2]])
@pytest.mark.parametrize("route", ["predict", "tasks"])
def test_arguments_that_do_not_fit_are_refused_with_422(stack, body, route):
    with stack.http() as http:
        reply = http.post(f"/v1/endpoints/add/{route}", json=body)
    assert reply.status_code == 422
    assert reply.json()["error"]["type"] == "invalid_request"


def test_plain_http_is_enough(stack):
    reply = httpx.post(
        f"{stack.url}/v1/endpoints/add/predict",
        content=b'{"a": 2, "b": 3}',
        headers={"Authorization": f"Bearer {stack.key()}", "Content-Type": "application/json"},
        timeout=60,
        trust_env=False,
    )
    assert (reply.status_code, reply.content) == (200, b"5")
    assert reply.headers["content-type"].startswith("application/json")


def test_a_task_over_plain_http_is_accepted_then_polled(stack):
    with stack.http() as http:
        accepted = http.post("/v1/endpoints/add/predict", json={"a": 2, "b": 3}, headers={"Prefer": "respond-async"})
        assert accepted.status_code == 202
        task = http.get(f"/v1/tasks/{accepted.json()['id']}", params={"wait_seconds": 30}).json()
    assert (task["status"], task["result"]) == ("succeeded", 5)


@pytest.mark.parametrize("key", ["", "Bearer brn_nobody"])
@pytest.mark.parametrize(
    "path", ["/v1/endpoints/add/predict", "/v1/endpoints/add/tasks", "/v1/endpoints/nothing/predict"]
)
def test_without_a_key_nothing_is_told(stack, key, path):
    with stack.http() as http:
        reply = http.post(path, json={"a": 1}, headers={"Authorization": key})
    assert reply.status_code == 401


def test_an_unknown_endpoint_is_404_and_says_where_to_look(stack):
    with stack.http() as http:
        reply = http.post("/v1/endpoints/nothing/predict", json={})
    assert (reply.status_code, reply.json()["error"]["type"]) == (404, "not_found")
