"""Failures: an exception of user code as its caller sees it, however broken it is."""

import contextlib
import http.client
import json
import urllib.error

import httpx
import pytest

from brinery_worker.failures import remote_error


def caught(function):
    with pytest.raises(BaseException) as info:
        function()
    return info.value


def test_type_bases_message_and_traceback_travel():
    def divide():
        return 1 / 0

    error = remote_error(caught(divide))
    assert error.message == "division by zero"
    assert error.context["exception_type"] == "ZeroDivisionError"
    assert error.context["exception_bases"] == ["ArithmeticError", "Exception", "BaseException"]
    assert error.context["exception_classes"] == [
        "builtins.ZeroDivisionError",
        "builtins.ArithmeticError",
        "builtins.Exception",
        "builtins.BaseException",
    ]
    assert "http_status" not in error.context
    assert "in divide" in error.context["traceback"]


def test_classes_outside_the_builtins_have_their_whole_names():
    classes = remote_error(caught(lambda: json.loads("{"))).context["exception_classes"]
    assert classes[:2] == ["json.decoder.JSONDecodeError", "builtins.ValueError"]


def with_attribute(name, value):
    return type("StatusError", (Exception,), {name: value})()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (httpx.HTTPStatusError("x", request=httpx.Request("GET", "http://a"), response=httpx.Response(503)), 503),
        (urllib.error.HTTPError("http://a", 429, "slow down", http.client.HTTPMessage(), None), 429),
        (with_attribute("status", 502), 502),
        (with_attribute("status", "502"), None),
        (with_attribute("status", True), None),
        (with_attribute("status", 7), None),
        (with_attribute("response", property(lambda _: 1 / 0)), None),
        (SystemExit(500), None),
    ],
)
def test_the_status_of_a_reply_that_an_exception_is_about_travels(error, status):
    with contextlib.closing(error) if isinstance(error, urllib.error.HTTPError) else contextlib.nullcontext():
        assert remote_error(error).context.get("http_status") == status


def test_causes_are_shown():
    def chain():
        try:
            {}["inner"]
        except KeyError as error:
            raise ValueError("outer") from error

    traceback = remote_error(caught(chain)).context["traceback"]
    assert traceback.index("KeyError: 'inner'") < traceback.index("ValueError: outer")


def test_an_exception_that_cannot_be_printed_still_arrives():
    class BrokenError(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    error = remote_error(BrokenError())
    assert "BrokenError" in error.message
    assert "BrokenError" in error.context["traceback"]


def test_endless_texts_are_cut_in_the_middle():
    error = remote_error(ValueError("a" * 1_000_000 + "the end"))
    assert len(error.message) < 40_000
    assert error.message.endswith("the end")
    assert "characters left out" in error.message
