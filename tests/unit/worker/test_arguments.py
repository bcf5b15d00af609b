"""Arguments: names, schema and types, each refused by the argument's name."""

import dataclasses
import datetime
import enum
import uuid
from pathlib import Path
from typing import Annotated, Any, Optional

import cloudpickle
import pydantic
import pytest

from brinery.errors import InvalidRequestError
from brinery_worker.arguments import Arguments


def read(function, body, schema=None):
    arguments = Arguments(function, schema)
    args, kwargs = arguments.bind(arguments.check(body))
    return function(*args, **kwargs)


@dataclasses.dataclass
class Inner:
    when: datetime.date


@dataclasses.dataclass
class Outer:
    inner: Inner
    many: list[Inner] = dataclasses.field(default_factory=list)
    parent: Optional["Outer"] = None


class Model(pydantic.BaseModel):
    size: int


class Colour(enum.Enum):
    RED = "red"


def identity(hint):
    def function(x):
        return x

    function.__annotations__["x"] = hint
    return function


@pytest.mark.parametrize(
    ("hint", "given", "result"),
    [
        (int, "3", 3),
        (Any, '{"a": 1}', {"a": 1}),
        (Model, '{"size": 2}', Model(size=2)),
        (list[Model], '[{"size": 2}]', [Model(size=2)]),
        (dict[str, Model], '{"a": {"size": 2}}', {"a": Model(size=2)}),
        (Model | None, "null", None),
        (Model | None, '{"size": 1}', Model(size=1)),
        (Annotated[Model, "note"], '{"size": 1}', Model(size=1)),
        (Inner, '{"when": "2026-01-02"}', Inner(datetime.date(2026, 1, 2))),
        (
            Outer,
            '{"inner": {"when": "2026-01-02"}, "many": [{"when": "2026-01-03"}], '
            '"parent": {"inner": {"when": "2026-01-04"}}}',
            Outer(
                Inner(datetime.date(2026, 1, 2)),
                [Inner(datetime.date(2026, 1, 3))],
                Outer(Inner(datetime.date(2026, 1, 4))),
            ),
        ),
        (Colour, '"red"', Colour.RED),
        (datetime.datetime, '"2026-01-02T03:04:05"', datetime.datetime(2026, 1, 2, 3, 4, 5)),
        (Path, '"/a"', Path("/a")),
        (uuid.UUID, '"00000000-0000-0000-0000-000000000001"', uuid.UUID(int=1)),
        (set[int], "[1, 1]", {1}),
        (tuple[int, ...], "[1, 2]", (1, 2)),
        (tuple[int, str], '[1, "a"]', (1, "a")),
        (list[int], "[1]", [1]),
        ("NotDefinedAnywhere", "1", 1),
    ],
)
def test_json_becomes_what_the_hint_asks_for(hint, given, result):
    assert read(identity(hint), f'{{"x": {given}}}'.encode()) == result


@pytest.mark.parametrize(
    ("hint", "given"),
    [(Model, '{"size": "big"}'), (Inner, "[]"), (Inner, "{}"), (Inner, '{"when": "soon"}'), (Colour, '"blue"')],
)
def test_what_does_not_fit_a_hint_is_refused_by_name(hint, given):
    with pytest.raises(InvalidRequestError, match="'x'"):
        read(identity(hint), f'{{"x": {given}}}'.encode())


def test_positional_only_parameters_are_passed_by_position():
    def function(x, /, y, *, z=3):
        return x, y, z

    assert read(function, b'{"y": 2, "x": 1}') == (1, 2, 3)


def test_keywords_beyond_the_names_go_to_a_function_that_takes_them():
    assert read(lambda **anything: anything, b'{"a": 1}') == {"a": 1}


@pytest.mark.parametrize("body", [b"", b"{}"])
def test_nothing_at_all_is_no_arguments(body):
    assert read(lambda: 1, body) == 1


@pytest.mark.parametrize("body", [b"[]", b"null", b"true", b"1", b'"text"', b"nonsense", b"[" * 100_000])
def test_what_is_no_object_is_refused(body):
    with pytest.raises(InvalidRequestError, match="The body is"):
        read(lambda **_: 1, body)


def test_missing_and_unexpected_arguments_are_named_without_a_schema_too():
    def function(first, second=2):
        return first, second

    with pytest.raises(InvalidRequestError, match="'first' is missing") as missing:
        read(function, b"{}")
    assert missing.value.context == {"field": "first"}
    with pytest.raises(InvalidRequestError, match="'third' is unexpected; takes first, second"):
        read(function, b'{"first": 1, "third": 3}')


def test_defaults_in_the_schema_are_not_put_in():
    schema = {"type": "object", "properties": {"x": {"type": "integer", "default": 5}}}
    assert read(lambda x=1: x, b"{}", schema) == 1


def test_the_schema_names_the_argument_and_the_place():
    schema = {
        "type": "object",
        "properties": {"x": {"type": "array", "items": {"type": "number"}}},
    }
    with pytest.raises(InvalidRequestError, match=r"Argument 'x': x\[1\] must be number") as refused:
        read(lambda x: x, b'{"x": [1, "two"]}', schema)
    assert refused.value.context == {"field": "x.1"}


def test_a_schema_that_refers_elsewhere_is_refused_and_nothing_is_fetched():
    with pytest.raises(InvalidRequestError, match="keep it in one piece"):
        Arguments(lambda x: x, {"properties": {"x": {"$ref": "http://127.0.0.1:1/schema"}}})


def test_a_callable_without_a_signature_takes_what_comes():
    assert Arguments(min, None).check(b'{"anything": 1}') == {"anything": 1}


def test_pickled_arguments_have_to_fit_the_signature():
    arguments = Arguments(lambda x, *, y=1: (x, y), None)
    assert arguments.unpickle(cloudpickle.dumps(((1,), {"y": 2}))) == ((1,), {"y": 2})
    for wrong in (((), {}), ((1, 2), {}), "no pair"):
        with pytest.raises(InvalidRequestError, match="cannot be used"):
            arguments.unpickle(cloudpickle.dumps(wrong))
