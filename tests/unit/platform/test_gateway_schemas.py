"""Arguments against schemas that nobody vouches for."""

from __future__ import annotations

import pytest

from brinery.errors import InvalidRequestError
from brinery_platform.gateway.schemas import MAX_CHECKED_BYTES, MAX_SCHEMA_BYTES, check_arguments

SCHEMA = {
    "type": "object",
    "properties": {
        "x": {"type": "array", "items": {"type": "number"}, "minItems": 1},
        "mode": {"enum": ["fast", "good"]},
        "point": {"$ref": "#/$defs/Point"},
    },
    "required": ["x"],
    "additionalProperties": False,
    "$defs": {"Point": {"type": "object", "properties": {"lat": {"type": "number"}}, "required": ["lat"]}},
}


@pytest.mark.parametrize("body", [b'{"x": [1]}', b'{"x": [1.5], "mode": "fast"}', b'{"x": [1], "point": {"lat": 1}}'])
def test_arguments_that_fit_pass(body):
    check_arguments(SCHEMA, body)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"{}", "x"),
        (b'{"x": []}', "x"),
        (b'{"x": ["a"]}', "x"),
        (b'{"x": [1], "mode": "slow"}', "mode"),
        (b'{"x": [1], "point": {}}', "lat"),
        (b'{"x": [1], "y": 2}', "y"),
        (b"[]", "JSON object"),
        (b'"x"', "JSON object"),
        (b"{", "not JSON"),
        (b'{"x": NaN}', "not JSON"),
    ],
)
def test_arguments_that_do_not_fit_are_named(body, named):
    with pytest.raises(InvalidRequestError, match=named):
        check_arguments(SCHEMA, body)


def test_no_body_means_no_arguments():
    check_arguments(None, b"")
    with pytest.raises(InvalidRequestError, match="x"):
        check_arguments(SCHEMA, b"")


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://127.0.0.1:1/schema.json"},
        {"$ref": "file:///etc/passwd"},
        {"$id": "http://127.0.0.1:1/", "properties": {"x": {"$ref": "other#/a"}}},
        {"allOf": [{"$ref": "ftp://127.0.0.1:1/x"}]},
        {"properties": {"x": {"$ref": "#/nowhere"}}},
        {"properties": {"x": {"type": "no such type"}}},
        {"$ref": "#"},
        {"$ref": "#/a", "a": {"$ref": "#/a"}},
        {"properties": "nonsense", "required": 7, "items": 3},
        {"properties": {'"]\nraise SystemExit #': {"const": '"""\nraise SystemExit'}}},
        {"enum": None, "minLength": "x"},
    ],
)
def test_a_schema_that_is_hostile_or_broken_refuses_nothing_and_reaches_for_nothing(schema):
    check_arguments(schema, b'{"x": 1}')


def test_a_pattern_cannot_hold_up_the_gateway():
    """With the pattern in force, this would last for years."""
    schema = {"properties": {"x": {"type": "string", "pattern": "(a+)+$"}}, "patternProperties": {"(a+)+$": {}}}
    check_arguments(schema, b'{"x": "' + b"a" * 40 + b'!", "' + b"a" * 40 + b'!": 1}')


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        ({"patternProperties": {"^n": {}}, "additionalProperties": False}, b'{"n1": 1}'),
        ({"not": {"required": ["x"], "properties": {"x": {"pattern": "^b"}}}}, b'{"x": "a"}'),
        (
            {"oneOf": [{"properties": {"x": {"pattern": "^a"}}}, {"properties": {"x": {"pattern": "^b"}}}]},
            b'{"x": "a"}',
        ),
        ({"properties": {"x": {"prefixItems": [{"type": "string"}], "items": False}}}, b'{"x": ["a"]}'),
        ({"properties": {"pattern": {"type": "integer"}, "$id": {"type": "integer"}}}, b'{"pattern": 1, "$id": 2}'),
        ({"if": {"properties": {"x": {"pattern": "^b"}}}, "then": False}, b'{"x": "a"}'),
    ],
)
def test_leaving_out_what_is_unsafe_never_refuses_what_the_whole_schema_takes(schema, body):
    check_arguments(schema, body)


def test_a_property_that_is_called_like_a_keyword_is_still_checked():
    with pytest.raises(InvalidRequestError):
        check_arguments({"properties": {"pattern": {"type": "integer"}}}, b'{"pattern": "x"}')


def test_what_is_too_large_is_left_to_the_worker():
    check_arguments({"type": "array"}, b" " * MAX_CHECKED_BYTES + b"{}")
    check_arguments({"required": ["x"], "description": "d" * MAX_SCHEMA_BYTES}, b"{}")
    deep = b'{"x": ' + b"[" * 2000 + b"]" * 2000 + b"}"
    with pytest.raises(InvalidRequestError, match="not JSON"):
        check_arguments({"type": "object"}, deep)
