"""The shared page, the words for exits, and the memory of how requests ended."""

import os
import signal

import pytest

from brinery_worker.board import Board, Occupied
from brinery_worker.exits import Exit, describe_exit, out_of_memory_kills
from brinery_worker.fates import FATES_KEPT, Fates


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


def occupied(*names):
    return [Occupied(slot, slot + 1, name, 0.0) for slot, name in enumerate(names)]


def test_a_forced_stop_is_told_apart_from_its_neighbours_and_from_a_crash():
    fates = Fates()
    ended = Exit(None, 9, "ended by us: req_a ran out of time")
    fates.note(occupied(b"req_a", b"req_b", b"req_c"), ended, ours=True, stopped={b"req_a"})
    assert fates.find(b"req_a") == {"fate": "stopped", "reason": ended.reason, "others": 2}
    assert fates.find(b"req_b") == {"fate": "neighbour", "reason": ended.reason, "others": 2}
    fates.note(occupied(b"req_d"), Exit(3, None, "exit code 3"), ours=False, stopped={b"req_d"})
    assert fates.find(b"req_d") == {"fate": "crashed", "reason": "exit code 3", "others": 0}
    assert fates.find(b"req_none")["fate"] == "unknown"


def test_the_oldest_fates_are_forgotten_first():
    fates = Fates()
    for number in range(FATES_KEPT + 2):
        fates.note(occupied(f"req_{number}".encode()), Exit(3, None, "exit"), ours=False, stopped=())
    assert [fates.find(f"req_{number}".encode())["fate"] for number in (0, 1, 2)] == ["unknown", "unknown", "crashed"]
