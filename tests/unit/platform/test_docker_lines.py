"""Lines with their times out of what the engine sends, and what is said of an engine that is silent."""

from __future__ import annotations

import itertools

import pytest

from brinery_platform.runtimes.docker import unanswered
from brinery_platform.runtimes.docker.lines import MOST_LINE_BYTES, stamped_lines

AT = 1_795_280_717.0
STAMP = b"2026-11-21T17:05:17"


def test_a_line_has_the_time_that_the_engine_wrote_with_all_its_digits():
    pieces = [STAMP + b".123456789Z one\n", STAMP + b"Z \xc3\xa4 two words\r\n"]
    assert list(stamped_lines(pieces)) == [(AT + 0.123456789, "one"), (AT, "ä two words")]


def test_a_line_in_several_pieces_is_one_with_the_time_of_its_first():
    pieces = [STAMP + b".1Z be", STAMP + b".2Z gin", STAMP + b".3Z ning\n", STAMP + b".4Z rest"]
    assert list(stamped_lines(pieces)) == [(AT + 0.1, "beginning"), (AT + 0.4, "rest")]


def test_an_empty_line_is_a_line_and_nothing_is_none():
    assert list(stamped_lines([STAMP + b"Z \n"])) == [(AT, "")]
    assert list(stamped_lines([])) == []


def test_a_line_without_an_end_comes_in_bounded_parts():
    endless = (STAMP + b"Z " + b"x" * 16_384 for _ in itertools.count())
    for _, line in itertools.islice(stamped_lines(endless), 3):
        assert len(line) == MOST_LINE_BYTES


def test_a_piece_without_a_time_is_not_lost():
    ((_, line),) = stamped_lines([b"what is this\n"])
    assert line == "is this"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError(2, "No such file or directory"), "file or directory); start it (in a container: mount its"),
        (PermissionError(13, "Permission denied"), "the group that owns its socket"),
        (ConnectionRefusedError(111, "Connection refused"), "(Connection refused); start it"),
        (TimeoutError("timed out"), "(the library's words); start it"),
    ],
)
def test_a_silent_engine_is_told_with_what_to_do(error, words):
    wrapped = RuntimeError("the library's words")
    wrapped.__cause__ = error
    assert words in unanswered.explain(wrapped)
