"""Failures: an exception of user code as its caller sees it, however broken it is."""

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
    assert "in divide" in error.context["traceback"]


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
