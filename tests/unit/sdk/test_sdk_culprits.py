"""What cannot be packed is named: the variable, the way to it, and the way out."""

import itertools
import socket
import sqlite3
import threading

import pytest

from brinery import Bundle, PackingError, endpoint
from brinery.bundle import pack

LOCK = threading.Lock()


class Holder:
    def __init__(self):
        self.settings = {"names": ["a", {"gate": threading.Lock()}]}


def text_of(packed):
    with pytest.raises(PackingError) as caught:
        pack(packed)
    return caught.value.message


def test_a_variable_of_the_enclosing_function_is_named():
    lock = threading.Lock()

    @endpoint
    def guarded(x: int) -> int:
        with lock:
            return x

    text = text_of(guarded)
    assert "'guarded' cannot be packed: variable 'lock' of the enclosing function is a _thread.lock" in text
    assert "inside the function" in text


def test_a_global_variable_is_named_with_the_way_into_it():
    holder = Holder()

    def inner():
        return holder, LOCK

    @endpoint
    def deep() -> str:
        return str(inner())

    text = text_of(deep)
    assert "variable 'inner' of the enclosing function → global variable 'LOCK' is a _thread.lock" in text


def test_the_way_leads_through_attributes_and_items():
    holder = Holder()
    text = text_of(endpoint(lambda: holder, name="deep"))
    assert (
        "'holder' of the enclosing function → attribute 'settings' → item 'names' → item 1 → item 'gate' is a" in text
    )


def test_a_default_is_named():
    with sqlite3.connect(":memory:") as database:

        @endpoint
        def query(sql: str, *, using=database) -> list:
            return using.execute(sql).fetchall()

        text = text_of(query)
    database.close()
    assert "default of parameter 'using' is a sqlite3.Connection" in text
    assert "load()" in text


def test_what_a_class_holds_is_named():
    with socket.socket() as opened:

        @endpoint
        class Model:
            line = opened

            def predict(self) -> int:
                return self.line.fileno()

        text = text_of(Model)
    assert "'Model' cannot be packed: class attribute 'line' is a socket.socket" in text
    assert "Open it in load()" in text


def test_what_a_method_of_a_class_uses_is_named():
    counter = (number for number in itertools.count())

    @endpoint
    class Model:
        def predict(self) -> int:
            return next(counter)

    text = text_of(Model)
    assert "method 'predict' → variable 'counter' of the enclosing function is a generator" in text


def test_what_either_function_of_a_pair_uses_is_named():
    lock = threading.Lock()
    pair = Bundle(name="pair", load_model=lambda: 1, load_predict=lambda _: lock)
    assert "item 'load_predict' → variable 'lock' of the enclosing function is a _thread.lock" in text_of(pair)


def test_another_endpoint_that_cannot_travel_is_named():
    lock = threading.Lock()
    other = endpoint(lambda: lock, name="other")
    text = text_of(endpoint(lambda: [other()], name="outer"))
    assert "'other' of the enclosing function → the code of endpoint 'other' → variable 'lock'" in text
