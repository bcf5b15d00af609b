"""What a caller of a worker gets: results, streams, errors, of real processes over real HTTP."""

import asyncio
import base64
import contextlib
import dataclasses
import http.client
import sys
import time

import cloudpickle
import pytest
from worker_process import Workers

from brinery.spec import CONTENT_JSON, CONTENT_PICKLE, MAX_BODY_BYTES

cloudpickle.register_pickle_by_value(sys.modules[__name__])

SCHEMA = {
    "type": "object",
    "properties": {"case": {"type": "string"}, "value": {}, "point": {"$ref": "#/$defs/Point"}},
    "required": ["case"],
    "additionalProperties": False,
    "$defs": {"Point": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}},
}


@dataclasses.dataclass
class Point:
    x: float
    label: str = "here"


class CustomError(ValueError):
    pass


async def _coroutine(value):
    await asyncio.sleep(0)
    return {"doubled": value * 2}


async def _async_items():
    for number in range(3):
        await asyncio.sleep(0)
        yield number


def _items():
    yield from (0, 1, 2)


def _breaking_items():
    yield 0
    raise CustomError("after one")


def _raise(error):
    raise error


def _numpy():
    import numpy

    return {"array": numpy.arange(3), "scalar": numpy.float32(0.5), "flag": numpy.bool_(True)}


def _pydantic():
    import pydantic

    class Answer(pydantic.BaseModel):
        text: str

    return [Answer(text="yes")]


def _request():
    from brinery import current_request

    return dataclasses.asdict(current_request())


async def _async_exit():
    raise SystemExit(7)


CASES = {
    "echo": lambda value, _: value,
    "point": lambda _, point: [type(point).__name__, point.x, point.label],
    "dataclass": lambda *_: Point(1.5),
    "coroutine": lambda value, _: _coroutine(value),
    "items": lambda *_: _items(),
    "async items": lambda *_: _async_items(),
    "breaking items": lambda *_: _breaking_items(),
    "numpy": lambda *_: _numpy(),
    "pydantic": lambda *_: _pydantic(),
    "nan": lambda *_: [float("nan")],
    "bytes": lambda *_: b"raw",
    "raise": lambda *_: _raise(CustomError("as I said")),
    "exit": lambda *_: sys.exit(3),
    "interrupt": lambda *_: _raise(KeyboardInterrupt()),
    "async exit": lambda *_: _async_exit(),
    "request": lambda *_: _request(),
    "modules": lambda *_: sorted(set(sys.modules) & {"pydantic", "httpx", "rich", "typer"}),
    "nested items": lambda *_: [list(range(100_000))],
}


def predict(case: str, value: object = None, point: Point | None = None):
    return CASES[case](value, point)


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    workers = Workers(tmp_path_factory.mktemp("calls"))
    try:
        yield workers.start(predict, manifest={"request_schema": SCHEMA}, arguments=["--concurrency", "2"])
    finally:
        workers.stop()


def test_modules_that_the_worker_may_not_need_are_not_loaded(worker):
    assert worker.predict(case="modules").json == []


@pytest.mark.parametrize("value", [None, True, 3, 0.1, "ü€😀", [1, [2]], {"a": {"b": None}}])
def test_json_goes_in_and_comes_out_unchanged(worker, value):
    reply = worker.predict(case="echo", value=value)
    assert (reply.status, reply.json) == (200, value)
    assert reply.headers["Content-Type"] == CONTENT_JSON
    assert reply.headers["X-Content-Type-Options"] == "nosniff"


def test_defaults_of_the_function_hold(worker):
    assert worker.predict(case="echo").json is None


@pytest.mark.parametrize("content_type", [None, "application/json; charset=utf-8", "application/x-www-form-urlencoded"])
def test_plain_curl_works_whatever_it_calls_its_body(worker, content_type):
    headers = {"Content-Type": content_type} if content_type else {}
    reply = worker.request("POST", "/predict", b'{"case": "echo", "value": 1}', headers)
    assert (reply.status, reply.json) == (200, 1)


@pytest.mark.parametrize(
    ("case", "result"),
    [
        ("dataclass", {"x": 1.5, "label": "here"}),
        ("items", [0, 1, 2]),
        ("async items", [0, 1, 2]),
        ("numpy", {"array": [0, 1, 2], "scalar": 0.5, "flag": True}),
        ("pydantic", [{"text": "yes"}]),
    ],
)
def test_results_of_many_kinds_become_json(worker, case, result):
    reply = worker.predict(case=case)
    assert (reply.status, reply.json) == (200, result)


def test_an_async_function_is_awaited(worker):
    assert worker.predict(case="coroutine", value=4).json == {"doubled": 8}


def test_a_json_object_becomes_the_dataclass_of_the_hint(worker):
    assert worker.predict(case="point", point={"x": 2}).json == ["Point", 2, "here"]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"{}", "case"),
        (b'{"case": 1}', "case"),
        (b'{"case": "echo", "valu": 1}', "valu"),
        (b'{"case": "point", "point": {"x": "two"}}', "point"),
        (b'{"case": "point", "point": {"x": 2, "colour": 1}}', "point"),
        (b"[1]", "array"),
        (b"{", "not JSON"),
        (b'{"case": NaN}', "NaN"),
        (b"\xff", "not JSON"),
    ],
)
def test_wrong_arguments_are_refused_by_name(worker, body, named):
    reply = worker.request("POST", "/predict", body, {"Content-Type": CONTENT_JSON})
    assert (reply.status, reply.error["type"]) == (422, "invalid_request")
    assert named in reply.error["message"]


@pytest.mark.parametrize("header", ["X-Brinery-Timeout-Seconds", "X-Brinery-Attempt"])
@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf"])
def test_a_header_that_is_no_number_is_refused(worker, header, value):
    reply = worker.predict(case="echo", headers={header: value})
    assert reply.status == 422
    assert header in reply.error["message"]


def test_an_unknown_content_type_is_refused(worker):
    reply = worker.request("POST", "/predict", b"<x/>", {"Content-Type": "text/xml"})
    assert (reply.status, reply.error["type"]) == (415, "unsupported_payload")


def test_a_body_that_announces_too_much_is_refused_unread(worker):
    connection = http.client.HTTPConnection("127.0.0.1", worker.port, timeout=30)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/predict")
        connection.putheader("Content-Length", str(MAX_BODY_BYTES + 1))
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status == 413
        assert b"/v1/objects" in answer.read()


def test_a_chunked_body_over_the_limit_is_refused_and_not_cut(worker):
    body = b'{"case": "echo"}' + b" " * MAX_BODY_BYTES
    chunks = (body[at : at + 1_000_000] for at in range(0, len(body), 1_000_000))
    connection = http.client.HTTPConnection("127.0.0.1", worker.port, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", "/predict", chunks, {"Content-Type": CONTENT_JSON}, encode_chunked=True)
        assert connection.getresponse().status == 413


def test_a_chunked_body_within_the_limit_is_read_whole(worker):
    value = "x" * 3_000_000
    chunks = iter([b'{"case": "echo", "value": "', value.encode(), b'"}'])
    connection = http.client.HTTPConnection("127.0.0.1", worker.port, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", "/predict", chunks, {"Content-Type": CONTENT_JSON}, encode_chunked=True)
        assert connection.getresponse().read().decode() == f'"{value}"'


def test_a_large_result_arrives_whole(worker):
    assert worker.predict(case="nested items").json == [list(range(100_000))]


def test_other_routes_are_json_errors_too(worker):
    for method, path in (("GET", "/nothing"), ("GET", "/predict"), ("POST", "/readyz")):
        reply = worker.request(method, path)
        assert (reply.status, reply.error["type"]) == (404, "not_found")


def test_health_and_readiness_answer(worker):
    assert worker.request("GET", "/healthz").status == 200
    assert worker.request("GET", "/readyz").json == {"status": "ready"}


def test_an_exception_of_user_code_comes_back_as_its_own(worker):
    reply = worker.predict(case="raise")
    assert (reply.status, reply.error["type"]) == (500, "remote")
    assert reply.error["message"] == "as I said"
    context = reply.error["context"]
    assert context["exception_type"] == "CustomError"
    assert context["exception_bases"] == ["ValueError", "Exception", "BaseException"]
    assert "in predict" in context["traceback"].splitlines()[1]
    assert "brinery_worker" not in context["traceback"]
    assert context["traceback"].endswith("CustomError: as I said\n")
    worker.wait_log("CustomError: as I said")


@pytest.mark.parametrize(
    ("case", "kind"), [("exit", "SystemExit"), ("interrupt", "KeyboardInterrupt"), ("async exit", "SystemExit")]
)
def test_exiting_ends_the_request_and_not_the_worker(worker, case, kind):
    pid = worker.child_pid
    reply = worker.predict(case=case)
    assert (reply.status, reply.error["context"]["exception_type"]) == (500, kind)
    assert worker.predict(case="coroutine", value=1).status == 200
    assert worker.child_pid == pid


@pytest.mark.parametrize(("case", "advice"), [("nan", "NaN"), ("bytes", "base64")])
def test_a_result_that_is_not_json_is_a_type_error_with_advice(worker, case, advice):
    reply = worker.predict(case=case)
    assert (reply.status, reply.error["context"]["exception_type"]) == (500, "TypeError")
    assert advice in reply.error["message"]
    assert "pickled=True" in reply.error["message"]


@pytest.mark.parametrize(
    ("case", "items"), [("items", [0, 1, 2]), ("async items", [0, 1, 2]), ("dataclass", [{"x": 1.5, "label": "here"}])]
)
def test_streams_are_one_event_an_item_and_then_done(worker, case, items):
    reply = worker.predict(path="/stream", case=case)
    assert (reply.status, reply.headers["Content-Type"]) == (200, "text/event-stream")
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.events == [*(("message", item) for item in items), ("done", {})]


def test_a_stream_that_breaks_ends_with_the_error(worker):
    first, last = worker.predict(path="/stream", case="breaking items").events
    assert first == ("message", 0)
    assert last[0] == "error"
    assert last[1]["error"]["context"]["exception_type"] == "CustomError"
    assert worker.status["busy"] == 0


def test_wrong_arguments_are_refused_before_a_stream_begins(worker):
    assert worker.predict(path="/stream", case=1).status == 422


def test_pickles_go_in_and_come_out(worker):
    body = cloudpickle.dumps((("echo",), {"value": {1, (2, 3)}}))
    reply = worker.request("POST", "/predict", body, {"Content-Type": CONTENT_PICKLE})
    assert (reply.status, reply.headers["Content-Type"]) == (200, CONTENT_PICKLE)
    assert cloudpickle.loads(reply.body) == {1, (2, 3)}


def test_errors_of_pickled_calls_are_json(worker):
    for body, status in (
        (cloudpickle.dumps((("raise",), {})), 500),
        (cloudpickle.dumps(((), {})), 422),
        (base64.b64decode("AAAA"), 422),
    ):
        reply = worker.request("POST", "/predict", body, {"Content-Type": CONTENT_PICKLE})
        assert (reply.status, reply.headers["Content-Type"]) == (status, CONTENT_JSON)


def test_user_code_knows_its_request(worker):
    headers = {"X-Brinery-Request-Id": "req_1", "X-Brinery-Task-Id": "tsk_1", "X-Brinery-Attempt": "3"}
    assert worker.predict(case="request", headers=headers).json == {
        "request_id": "req_1",
        "task_id": "tsk_1",
        "attempt": 3,
    }
    unnamed = worker.predict(case="request").json
    assert unnamed["request_id"].startswith("req_")
    assert (unnamed["task_id"], unnamed["attempt"]) == (None, 1)


def test_one_connection_carries_many_requests(worker):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", worker.port, timeout=30)) as connection:
        for number in range(20):
            connection.request("POST", "/predict", f'{{"case": "echo", "value": {number}}}')
            assert connection.getresponse().read() == str(number).encode()


def endless(closed: str):
    from pathlib import Path

    try:
        while True:
            yield "x" * 10_000
            time.sleep(0.001)
    finally:
        Path(closed).write_text("closed")


def test_a_stream_whose_reader_leaves_is_closed_and_its_slot_freed(tmp_path):
    workers = Workers(tmp_path)
    try:
        worker = workers.start(endless)
        closed = tmp_path / "closed"
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", worker.port, timeout=30)) as connection:
            connection.request("POST", "/stream", f'{{"closed": "{closed}"}}')
            assert connection.getresponse().read(100)
        worker.wait_until(closed.exists, "closing the generator")
        worker.wait_busy(0)
    finally:
        workers.stop()
