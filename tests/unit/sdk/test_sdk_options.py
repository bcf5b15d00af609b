"""What callers choose travels as headers and settings; where it is wrong, nothing is sent."""

import json
from dataclasses import fields
from email.errors import MessageError

import httpx
import pytest

from brinery import Endpoint, InvalidRequestError, endpoint
from brinery.spec import TASK_HEADERS, TaskOptions, Webhook

HOOK = "https://example.org/hook"


class AppError(Exception):
    class InnerError(Exception):
        """Has a dot in its qualified name."""


@pytest.fixture
def echo(gateway, client):
    gateway.functions["echo"] = lambda **arguments: arguments
    return Endpoint.from_name("echo", client=client)


@pytest.fixture
def sent(gateway, echo):
    """The headers of a task with these choices."""

    def sent(**choices):
        echo.options(**choices).submit()
        return gateway.requests[-1][2]

    return sent


def test_every_option_of_a_task_has_its_header():
    assert set(TASK_HEADERS) == {field.name for field in fields(TaskOptions)}


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ([ValueError, "HTTP 503"], "ValueError, HTTP 503"),
        ((httpx.ConnectError,), "httpx.ConnectError"),
        ([MessageError, "requests.exceptions.Timeout"], "email.errors.MessageError, requests.exceptions.Timeout"),
        ([AppError.InnerError], f"{__name__}.AppError.InnerError"),
        ([type("LocalError", (Exception,), {"__qualname__": "f.<locals>.LocalError"})], "LocalError"),
        ([type("MainError", (Exception,), {"__module__": "__main__"})], "MainError"),
        ([], ""),
    ],
)
def test_errors_to_try_again_travel_by_their_names(sent, given, names):
    assert sent(retry_for=given)["X-Brinery-Retry-For"] == names
    assert endpoint(lambda: 1, name="one", retry_for=given).spec("bun_1").retry_for == [
        n for n in names.split(", ") if n
    ]


@pytest.mark.parametrize(
    ("given", "fields_of_it"),
    [
        (HOOK, {}),
        ({"url": HOOK}, {}),
        ({"url": HOOK, "username": "ann", "password": "pässword"}, {"username": "ann", "password": "pässword"}),
        (Webhook(url=HOOK, username="ann"), {"username": "ann"}),
        ("https://example.org/höök", {"url": "https://example.org/höök"}),
    ],
)
def test_a_webhook_travels_as_its_address_or_as_json_in_ascii(sent, given, fields_of_it):
    header, expected = sent(webhook=given)["X-Brinery-Webhook"], Webhook(**{"url": HOOK, **fields_of_it})
    assert header.isascii()
    assert (Webhook(**json.loads(header)) if fields_of_it else header) == (expected if fields_of_it else HOOK)
    assert endpoint(lambda: 1, name="one", webhook=given).spec("bun_1").webhook == expected


def test_the_life_of_a_result_travels(sent):
    assert sent(result_ttl_seconds=60)["X-Brinery-Result-Ttl-Seconds"] == "60"


def test_none_is_the_endpoints_own_choice(sent):
    headers = sent(**dict.fromkeys(TASK_HEADERS))
    assert not {name for name in headers if name in TASK_HEADERS.values()}


@pytest.mark.parametrize(
    ("choices", "text"),
    [
        ({"priority": 12}, "priority is 12, and must be at most 9"),
        ({"priority": -1}, "must be at least 0"),
        ({"priority": 2.5}, "priority is a whole number, not 2.5"),
        ({"priority": True}, "priority is a whole number, not True"),
        ({"priority": "5"}, "priority is a whole number, not '5'"),
        ({"timeout_seconds": 0}, "timeout_seconds is 0, and must be above 0"),
        ({"timeout_seconds": float("inf")}, "timeout_seconds is a number, not inf"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds is a number, not nan"),
        ({"max_attempts": 101}, "must be at most 100"),
        ({"expires_in_seconds": "1h"}, "expires_in_seconds is a number, not '1h'"),
        ({"result_ttl_seconds": -1}, "result_ttl_seconds is -1, and must be above 0"),
        ({"idempotency_key": ""}, "at least 1 characters long"),
        ({"idempotency_key": "k" * 201}, "at most 200 characters long"),
        ({"idempotency_key": "schlüssel"}, "printable ASCII"),
        ({"idempotency_key": "a\nb"}, "printable ASCII"),
        ({"idempotency_key": 5}, "idempotency_key is a text, not 5"),
        ({"retry_for": "ValueError"}, r"retry_for is a list, such as \[ValueError, 'HTTP 503'\], not 'ValueError'"),
        ({"retry_for": ValueError}, "retry_for is a list"),
        ({"retry_for": [ValueError("x")]}, "neither an exception class nor a text"),
        ({"retry_for": [int]}, "neither an exception class nor a text"),
        ({"retry_for": [503]}, "neither an exception class nor a text"),
        ({"retry_for": ["HTTP 200"]}, "neither an exception's name"),
        ({"retry_for": ["E"] * 21}, "at most 20"),
        *(
            ({"retry_for": [slip]}, "such as 'HTTP 503'")
            for slip in ("HTTP", "HTTP503", "http_503", "HTTP ", "HTTP 4²²")
        ),
        ({"expires_in_seconds": float("inf")}, "expires_in_seconds is a number, not inf"),
        ({"result_ttl_seconds": 1e308}, "must be at most 315360000"),
        ({"webhook": "https://example.org/a b"}, "without blanks"),
        ({"webhook": {"url": HOOK, "password": "secret"}}, "a password needs a username"),
        ({"webhook": 5}, "webhook is a URL, or a dict"),
        ({"webhook": {"username": "ann"}}, "webhook is a URL, or a dict"),
        ({"webhook": {"url": HOOK, "user": "ann"}}, "username and password"),
        ({"webhook": {"url": HOOK, "password": 5}}, "a dict of texts"),
        ({"webhook": "ftp://example.org"}, "http:// or https://"),
        ({"webhook": "https://ann:secret@example.org"}, "without a user in it"),
        ({"webhook": {"url": HOOK, "username": "u" * 201}}, "webhook: username must be at most 200"),
    ],
)
def test_a_value_that_is_wrong_is_refused_before_anything_is_sent(gateway, echo, choices, text):
    with pytest.raises(InvalidRequestError, match=text) as caught:
        echo.options(**choices)
    assert "secret" not in str(caught.value)
    assert not gateway.requests


@pytest.mark.parametrize("choices", [{"retry_for": "ValueError"}, {"webhook": 5}, {"priority_age_seconds": 0}])
def test_an_endpoint_with_a_wrong_choice_is_refused(choices):
    with pytest.raises(InvalidRequestError, match=next(iter(choices))):
        endpoint(lambda: 1, name="one", **choices).spec("bun_1")


def test_a_webhooks_password_is_not_in_what_is_printed():
    one = endpoint(lambda: 1, name="one", webhook={"url": HOOK, "username": "ann", "password": "hidden"})
    assert "hidden" not in repr(one) + repr(one.settings) + repr(
        one.options(webhook=one.settings["webhook"]).__dict__["_choices"]
    )
