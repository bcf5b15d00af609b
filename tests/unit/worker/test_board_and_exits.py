"""The shared page and the words for exits."""

import os
import signal

import pytest

from brinery_worker.board import Board, Occupied
from brinery_worker.exits import describe_exit, out_of_memory_kills


def test_what_one_side_writes_the_other_reads():
    theirs, fd = Board.create(3)
    ours = Board(fd, 3)
    os.close(fd)
    ours.enter(1, 7, b"req_a", 12.5)
    assert theirs.occupied() == [Occupied(1, 7, b"req_a", 12.5)]
    assert theirs.sequence(1) == 7
    assert ours.silent_seconds() == 0.0
    theirs.draining = True
    assert ours.draining
    ours.beat()
    assert 0 <= theirs.silent_seconds() < 60
    ours.leave(1)
    assert theirs.occupied() == []
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    ("status", "because", "memory", "code", "number", "text"),
    [
        (3 << 8, None, False, 3, None, "exit code 3"),
        (signal.SIGSEGV, None, False, None, 11, "SIGSEGV"),
        (signal.SIGKILL, None, False, None, 9, "SIGKILL"),
        (signal.SIGKILL, None, True, None, 9, "out of memory"),
        (signal.SIGKILL, "we did", True, None, 9, "we did"),
        (signal.SIGSEGV, None, True, None, 11, "SIGSEGV"),
    ],
)
def test_exits_are_told_apart(status, because, memory, code, number, text):
    found = describe_exit(int(status), killed_because=because, out_of_memory=memory)
    assert (found.code, found.signal) == (code, number)
    assert text in found.reason
    assert ("out of memory" in found.reason) == (text == "out of memory")


def test_the_kernel_can_always_be_asked_for_memory_kills():
    assert out_of_memory_kills() >= 0
