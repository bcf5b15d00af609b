"""Calls over real HTTP: arguments bound and carried, results and errors brought back, streams item by item."""

import asyncio
import dataclasses
import datetime
import enum
import json
import threading

import pytest
from little_gateway import KEY

from brinery import (
    AuthenticationError,
    BrineryError,
    Bundle,
    Endpoint,
    InvalidRequestError,
    NotFoundError,
    PayloadTooLargeError,
    RemoteError,
    UnavailableError,
    WorkerError,
    endpoint,
)
from brinery.calls import Calls
from brinery.client import Client
from brinery.sse import server_sent_events


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int


@pytest.fixture
def echo(gateway, client):
    gateway.functions["echo"] = lambda **arguments: arguments
    return Endpoint.from_name("echo", client=client)


@pytest.fixture
def bound(gateway, client):
    gateway.functions["echo"] = lambda **arguments: arguments

    def bound(function):
        return Calls("echo", signature=endpoint(function, name="echo").parameters(), client=client)

    return bound


def test_positional_arguments_travel_by_their_names(bound):
    calls = bound(lambda a, b=1, *, c=2, **more: (a, b, c, more))
    assert calls.remote(1) == {"a": 1}
    assert calls.remote(1, 2, c=3, d=4) == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert calls.options(timeout_seconds=5).remote(1, 2) == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("function", "args", "text"),
    [
        (lambda a: a, (), "missing a required argument: 'a'"),
        (lambda a: a, (1, 2), "too many positional arguments"),
        (lambda a, /: a, (1,), "'a' cannot be passed by name"),
        (lambda *a: a, (1,), r"'\*a' cannot be passed by name"),
    ],
)
def test_arguments_that_cannot_travel_are_refused_here(bound, function, args, text):
    with pytest.raises(InvalidRequestError, match=text):
        bound(function).remote(*args)


def test_without_a_signature_arguments_are_passed_by_keyword(echo):
    assert echo.remote(a=1) == {"a": 1}
    with pytest.raises(InvalidRequestError, match="by keyword"):
        echo.remote(1)
    assert Bundle(name="pair", load_model=int, load_predict=int).parameters() is None


def test_common_types_become_the_obvious_json(echo):
    numpy = pytest.importorskip("numpy")
    sent = echo.remote(
        a=(1, 2),
        b={3},
        c=Point(4),
        d=Colour.RED,
        e=datetime.date(2026, 1, 2),
        f=numpy.array([[1, 2]]),
        g=numpy.float32(0.5),
    )
    assert sent == {
        "a": [1, 2],
        "b": [3],
        "c": {"x": 4},
        "d": "red",
        "e": "2026-01-02",
        "f": [[1, 2]],
        "g": 0.5,
    }


@pytest.mark.parametrize("value", [object(), float("nan"), b"bytes", {1: object()}])
def test_what_json_cannot_carry_is_named(echo, value):
    with pytest.raises(InvalidRequestError, match=r"argument 'wrong' .*pickled=True"):
        echo.remote(fine=1, wrong=value)


def test_any_python_object_travels_when_pickled(gateway, echo):
    gateway.functions["echo"] = lambda *args, **kwargs: (args, kwargs, Point(1))
    assert echo.options(pickled=True).remote({1}, key=b"x") == (({1},), {"key": b"x"}, Point(1))


def test_a_pickle_that_nobody_asked_for_is_not_opened(gateway, echo):
    gateway.functions["echo"] = lambda: ("application/vnd.brinery.pickle", b"not opened")
    with pytest.raises(InvalidRequestError, match="pickled=True"):
        echo.remote()


@pytest.mark.parametrize("body", [b"<html>", b"", b"\xff"])
def test_a_reply_that_is_not_json_is_an_error_of_ours(gateway, echo, body):
    gateway.functions["echo"] = lambda: ("text/html", body)
    with pytest.raises(BrineryError, match="not JSON"):
        echo.remote()


@pytest.mark.parametrize("text", ["app.LostError: gone\n", "LostError: gone", ""])
def test_a_remote_traceback_without_frames_is_not_shown(text):
    assert str(RemoteError("gone", exception_type="LostError", traceback=text)) == "LostError: gone"


def test_a_remote_traceback_with_frames_or_notes_is_shown():
    for text in (
        'Traceback (most recent call last):\n  File "a.py", line 1\nLostError: gone\n',
        "LostError: gone\na note",
    ):
        assert str(RemoteError("gone", exception_type="LostError", traceback=text)).endswith(
            f"Remote traceback:\n{text}"
        )


def test_options_travel_as_headers(gateway, echo):
    echo.options(timeout_seconds=2.5, priority=9, idempotency_key="k").remote()
    headers = gateway.requests[-1][2]
    assert (headers["X-Brinery-Timeout-Seconds"], headers["X-Brinery-Priority"]) == ("2.5", "9")
    assert headers["Idempotency-Key"] == "k"
    echo.options(max_attempts=1, expires_in_seconds=60).submit()
    headers = gateway.requests[-1][2]
    assert (headers["X-Brinery-Max-Attempts"], headers["X-Brinery-Expires-In-Seconds"]) == ("1", "60")


def test_another_owners_endpoint_is_called_by_both_names(gateway, client):
    gateway.functions["ann/echo"] = lambda: "hers"
    assert Endpoint.lookup("ann/echo", client=client).remote() == "hers"


def test_a_body_over_the_limit_is_refused_before_it_is_sent(gateway, echo):
    with pytest.raises(PayloadTooLargeError, match="32 MiB"):
        echo.remote(x="x" * 2**25)
    assert not gateway.requests


def test_the_users_exception_is_a_remote_error(gateway, echo):
    def fail():
        raise RemoteError("lost", exception_type="LookupError", exception_bases=["Exception"], traceback="File x")

    gateway.functions["echo"] = fail
    with pytest.raises(RemoteError) as caught:
        echo.remote()
    assert caught.value.context["exception_type"] == "LookupError"
    assert str(caught.value) == "LookupError: lost\n\nRemote traceback:\nFile x"


def test_errors_of_the_platform_keep_their_class(gateway, client):
    with pytest.raises(NotFoundError, match="nothing"):
        Calls("nothing", client=client).remote()
    stranger = Client(gateway.url, "brn_wrong")
    with pytest.raises(AuthenticationError):
        Calls("echo", client=stranger).remote()
    stranger.close()


def test_when_nothing_answers_it_says_how_to_start_it(gateway, echo):
    gateway.stop()
    with pytest.raises(UnavailableError, match=rf"Nothing answers at {gateway.url}.*brinery up"):
        echo.remote()


def test_a_call_whose_connection_is_cut_is_not_repeated(gateway, echo):
    gateway.drops.append("POST")
    with pytest.raises(UnavailableError, match="may or may not have happened"):
        echo.remote()
    assert len(gateway.requests) == 1


def test_a_gateway_that_came_back_is_spoken_to_at_once(gateway, echo):
    assert echo.remote(a=1) == {"a": 1}
    gateway.stop()
    gateway.start()
    assert echo.remote(a=2) == {"a": 2}


def test_a_stream_yields_each_item_also_such_as_hold_unicodes_line_ends(gateway, echo):
    items = [1, "a\u2028b\x85c\n", {"x": [None]}]
    gateway.functions["echo"] = lambda: iter(items)
    assert list(echo.stream()) == items


def test_a_stream_that_raises_yields_what_came_before(gateway, echo):
    def broken():
        yield 1
        raise ValueError("broken")

    gateway.functions["echo"] = broken
    stream = echo.stream()
    assert next(stream) == 1
    with pytest.raises(RemoteError, match="broken"):
        next(stream)


def test_a_stream_that_breaks_off_is_no_success(gateway, echo):
    gateway.functions["echo"] = lambda: iter([1, ...])
    stream = echo.stream()
    assert next(stream) == 1
    with pytest.raises(WorkerError, match="broke off"):
        next(stream)


def test_a_stream_of_an_endpoint_that_is_not_there_raises(client):
    with pytest.raises(NotFoundError):
        next(Calls("nothing", client=client).stream())


def test_calls_run_on_an_event_loop_too(echo):
    async def run():
        return await asyncio.gather(*(echo.aremote(i=i) for i in range(20)))

    assert asyncio.run(run()) == [{"i": i} for i in range(20)]
    assert asyncio.run(run()) == [{"i": i} for i in range(20)]


def test_threads_share_a_client(echo):
    found = []
    threads = [threading.Thread(target=lambda i=i: found.append(echo.remote(i=i)["i"])) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(20))


def test_a_forked_child_has_connections_of_its_own(desk, gateway):
    gateway.functions["echo"] = lambda **arguments: arguments
    code = """
        import json, os
        from brinery import Endpoint
        echo = Endpoint.from_name("echo")
        assert echo.remote(i=0) == {"i": 0}
        pids = []
        for i in range(3):
            if (pid := os.fork()) == 0:
                for j in range(20):
                    assert echo.remote(i=i, j=j) == {"i": i, "j": j}
                os._exit(0)
            pids.append(pid)
        for j in range(20):
            assert echo.remote(j=j) == {"j": j}
        print(json.dumps([os.waitpid(pid, 0)[1] for pid in pids]))
    """
    script = desk.write("fork.py", code.replace("\n        ", "\n"))
    done = desk.python(str(script), BRINERY_URL=gateway.url, BRINERY_API_KEY=KEY)
    assert json.loads(done.stdout) == [0, 0, 0]


def test_events_are_read_whatever_pieces_they_come_in():
    raw = b'event: a\r\ndata: 1\r\ndata: 2\r\n\r\n: comment\n\ndata:{"x": "\xc3\xa9"}\nid: 7\n\ndata: unfinished'
    expected = [("a", "1\n2"), ("message", '{"x": "é"}')]
    for size in (1, 3, len(raw)):
        assert list(server_sent_events(raw[i : i + size] for i in range(0, len(raw), size))) == expected
