"""Type hints become JSON Schemas; what they do not say, or pydantic cannot express, stays open."""

from __future__ import annotations

import functools
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import pytest
from annotated_types import Ge
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from brinery import Bundle, endpoint
from brinery.schema import describe

if TYPE_CHECKING:
    from decimal import Decimal


@dataclass
class Point:
    x: float
    label: str | None = None


class Flower(BaseModel):
    at: Point
    kind: Literal["iris", "rose"] = "iris"


def accepts(schema, value):
    return Draft202012Validator(schema).is_valid(value)


def test_parameters_become_an_object_that_takes_what_they_take():
    @endpoint
    def plant(flowers: list[Flower], count: Annotated[int, Ge(1)], near: Point | None = None, note="") -> Flower:
        doc = __doc__
        return doc, flowers, count, near, note

    plant.target.__doc__ = "Plant flowers\n    in a row.\n\n    And more."
    found = describe(plant)
    schema = found["request_schema"]
    Draft202012Validator.check_schema(schema)
    assert (schema["required"], schema["additionalProperties"]) == (["flowers", "count"], False)
    assert schema["$defs"].keys() == {"Flower", "Point"}
    assert accepts(schema, {"flowers": [{"at": {"x": 1}}], "count": 1, "near": {"x": 2, "label": None}, "note": [1]})
    for wrong in (
        {"count": 1},
        {"flowers": [], "count": 0},
        {"flowers": [{"at": {}}], "count": 1},
        {"flowers": [], "count": 1, "extra": 1},
    ):
        assert not accepts(schema, wrong)
    assert schema["properties"]["note"] == {"default": ""}
    assert found["response_schema"]["$defs"]["Flower"]["properties"]["kind"]["enum"] == ["iris", "rose"]
    assert found["doc"] == "Plant flowers in a row."
    assert not found["streaming"]


def test_a_class_is_described_by_its_predict():
    @endpoint
    class Model:
        """Knows."""

        def predict(self, x: list[float]) -> dict[str, int]:
            return {"n": len(x)}

    found = describe(Model)
    assert list(found["request_schema"]["properties"]) == ["x"]
    assert found["response_schema"] == {"type": "object", "additionalProperties": {"type": "integer"}}
    assert found["doc"] == "Knows."


def test_names_of_an_enclosing_function_are_found():
    class Inner(BaseModel):
        n: int

    @endpoint
    def f(x: Inner) -> None:
        return Inner, x

    assert describe(f)["request_schema"]["$defs"].keys() == {"Inner"}
    assert describe(f)["response_schema"] == {"type": "null"}


def test_hints_that_say_nothing_here_leave_the_others_alone():
    @endpoint
    def f(a: Decimal, b: NoSuchName, c: threading.Lock, d, e: int) -> threading.Lock: ...  # noqa: F821 - that is the test

    found = describe(f)
    assert found["request_schema"]["properties"] == {"a": {}, "b": {}, "c": {}, "d": {}, "e": {"type": "integer"}}
    assert found["response_schema"] is None


def test_two_types_of_one_name_stay_apart():
    def make(kind):
        class Same(BaseModel):
            value: kind

        return Same

    def f(a, b): ...

    f.__annotations__ = {"a": make("int"), "b": make("str")}
    schema = describe(endpoint(f))["request_schema"]
    assert accepts(schema, {"a": {"value": 1}, "b": {"value": "x"}})
    assert not accepts(schema, {"a": {"value": "x"}, "b": {"value": 1}})


def test_keyword_arguments_leave_the_object_open():
    def f(a: int, **others): ...

    schema = describe(endpoint(f))["request_schema"]
    assert schema["additionalProperties"] is True
    assert list(schema["properties"]) == ["a"]


def test_parameters_without_a_name_have_no_schema():
    def f(a: int, /): ...

    assert describe(endpoint(f))["request_schema"] is None


def test_generators_stream_and_have_no_response_schema():
    @endpoint
    def count() -> Iterator[int]:
        yield 1

    @endpoint
    async def acount() -> AsyncIterator[int]:
        yield 1

    for found in (describe(count), describe(acount)):
        assert found["streaming"]
        assert found["response_schema"] is None


def test_wrapped_functions_are_described_by_what_they_wrap():
    def deco(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args, **kwargs)

        return wrapper

    @endpoint
    @deco
    def f(point: Point) -> int: ...

    assert list(describe(f)["request_schema"]["properties"]) == ["point"]
    partial = endpoint(functools.partial(f.target, Point(1.0)), name="partial")
    assert describe(partial)["response_schema"] == {"type": "integer"}


@pytest.mark.parametrize("load_predict", [lambda model: model])
def test_of_a_pair_nothing_is_known_before_it_is_loaded(load_predict):
    pair = Bundle(name="pair", load_model=lambda: 1, load_predict=load_predict)
    assert describe(pair) == {"doc": ""}
