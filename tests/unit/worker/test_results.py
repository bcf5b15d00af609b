"""Results: what becomes JSON and what is refused with advice."""

import collections
import dataclasses
import datetime
import decimal
import enum
import json
import pathlib
import uuid

import numpy
import pydantic
import pytest

from brinery_worker.results import encode_json


@dataclasses.dataclass
class Point:
    x: object


class Model(pydantic.BaseModel):
    when: datetime.date


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (None, None),
        ("ü€😀", "ü€😀"),
        ((1, 2), [1, 2]),
        ({1: 2}, {"1": 2}),
        ({3}, [3]),
        (Point(Point(numpy.float64(1.5))), {"x": {"x": 1.5}}),
        (Model(when=datetime.date(2026, 1, 2)), {"when": "2026-01-02"}),
        ([Colour.RED], ["red"]),
        (numpy.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (numpy.int64(7), 7),
        (datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), "2026-01-02T00:00:00+00:00"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (pathlib.Path("/a"), "/a"),
        (decimal.Decimal("1.10"), "1.10"),
        (collections.OrderedDict(a=1), {"a": 1}),
    ],
)
def test_many_kinds_become_json(value, result):
    assert json.loads(encode_json(value)) == result


def circle():
    found: list[object] = []
    found.append(found)
    return found


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (float("nan"), "NaN or infinity"),
        ([numpy.float32("inf")], "NaN or infinity"),
        (numpy.array([numpy.nan]), "NaN or infinity"),
        (b"bytes", "base64"),
        (object(), "object is not JSON"),
        ({(1, 2): 3}, "string keys"),
        (circle(), "contains itself"),
        ("\ud800", "surrogate"),
        (Point, "is not JSON"),
    ],
)
def test_what_json_cannot_carry_is_refused_with_advice(value, advice):
    with pytest.raises(TypeError, match=advice):
        encode_json(value)
