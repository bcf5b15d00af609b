"""Slots: admission, and that a stop lands in the request it is meant for and nowhere else."""

import os
import socket
import threading
import time

import pytest

from brinery.errors import TaskCancelledError, UpstreamTimeoutError, WorkerBusyError
from brinery_worker.board import Board
from brinery_worker.slots import SENDING_SECONDS, RequestStopped, Running, Slots


@pytest.fixture
def board():
    board, fd = Board.create(2)
    os.close(fd)
    yield board
    board.close()


def test_slots_are_given_out_and_come_back(board):
    slots = Slots(board)
    first, second = slots.enter("req_a", None), slots.enter("req_b", 60.0)
    assert {found.request_id for found in board.occupied()} == {b"req_a", b"req_b"}
    with pytest.raises(WorkerBusyError):
        slots.enter("req_c", None)
    slots.leave(first)
    third = slots.enter("req_c", None)
    assert third.index == first.index
    assert third.sequence not in {first.sequence, second.sequence}
    slots.leave(second)
    slots.leave(third)
    assert slots.idle
    assert board.occupied() == []


def test_a_request_waits_a_moment_for_a_slot_that_is_about_to_be_free(board):
    slots = Slots(board)
    held = [slots.enter("req_a", None), slots.enter("req_b", None)]
    for _ in range(100):  # 20 ms is less than what a busy machine may take to run the other thread
        leaving = threading.Timer(0.002, lambda: slots.leave(held.pop()))
        leaving.start()
        try:
            held.insert(0, slots.enter("req_c", None))
        except WorkerBusyError:
            leaving.join()
            held.insert(0, slots.enter("req_d", None))
            continue
        leaving.join()
        break
    else:
        pytest.fail("nobody ever waited")
    assert len(held) == 2


def test_a_draining_worker_takes_nothing(board):
    slots = Slots(board)
    board.draining = True
    with pytest.raises(WorkerBusyError, match="stopping"):
        slots.enter("req_a", None)


def test_only_as_many_wait_as_there_are_slots(board):
    slots = Slots(board)
    held = [slots.enter("req_a", None), slots.enter("req_b", None)]
    refused = []

    def wait():
        try:
            slots.enter("req_c", None)
        except WorkerBusyError:
            refused.append(True)

    threads = [threading.Thread(target=wait) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 20
    for running in held:
        slots.leave(running)


def test_long_request_ids_are_cut_alike_on_both_sides(board):
    slots = Slots(board)
    running = slots.enter("ü" * 500, None)
    assert board.occupied()[0].request_id == ("ü" * 500).encode()[:127]
    slots.leave(running)


def in_thread(work):
    outcome = []

    def catch():
        try:
            outcome.append(work())
        except BaseException as error:  # noqa: BLE001 - what it raised is the outcome
            outcome.append(error)

    thread = threading.Thread(target=catch)
    thread.start()
    return thread, outcome


@pytest.mark.parametrize(("reason", "error"), [("cancelled", TaskCancelledError), ("timeout", UpstreamTimeoutError)])
def test_a_stop_interrupts_python_code(reason, error):
    started = threading.Event()
    made = []

    def work():
        running = Running(0, 1)
        made.append(running)

        def step():
            started.set()
            while True:
                pass

        running.run(step)

    thread, outcome = in_thread(work)
    started.wait()
    made[0].stop(reason)
    thread.join()
    assert isinstance(outcome[0], RequestStopped)
    assert isinstance(made[0].error(), error)


def test_a_stop_before_a_step_begins_keeps_it_from_beginning():
    running = Running(0, 1)
    running.stop("cancelled")
    with pytest.raises(RequestStopped):
        running.run(lambda: pytest.fail("ran"))


@pytest.fixture
def sending():
    """A request that is between two steps of a stream, its connection, and the client's end of that."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        running = Running(0, 1)
        running.connection = ours
        running.run(lambda: None)
        yield running, ours, theirs


def test_a_stop_between_two_steps_leaves_the_connection_to_the_next_step(sending):
    running, ours, theirs = sending
    running.stop("cancelled")
    with pytest.raises(RequestStopped):
        running.run(lambda: pytest.fail("ran"))
    running.leave()
    time.sleep(2 * SENDING_SECONDS)
    ours.sendall(b"x")
    assert theirs.recv(1) == b"x", "another request may use it"


@pytest.mark.parametrize("threads_left", [True, False])
def test_a_stop_of_what_does_not_come_to_its_next_step_closes_the_connection(sending, monkeypatch, threads_left):
    def refuse(_timer):
        raise RuntimeError("can't start new thread")

    if not threads_left:
        monkeypatch.setattr(threading.Timer, "start", refuse)
    running, _, theirs = sending
    running.stop("cancelled")
    theirs.settimeout(10)
    assert theirs.recv(1) == b""


def test_a_stop_of_a_request_that_has_left_does_nothing(board):
    slots = Slots(board)
    first = slots.enter("req_a", None)
    slots.leave(first)
    second = slots.enter("req_b", None)
    assert second.index in {0, 1}
    slots.stop(first.index, first.sequence, "cancelled")
    assert not second.stopped
    slots.leave(second)


class Hesitant(Running):
    """A request whose stopper looks whether it may interrupt, and acts only when the step is long over."""

    __slots__ = ("_value", "acted", "looked", "step_over")

    def __init__(self):
        self.looked, self.step_over, self.acted = threading.Event(), threading.Event(), threading.Event()
        self._value = False
        super().__init__(0, 1)

    @property
    def _interruptible(self):
        found = self._value
        if threading.current_thread() is threading.main_thread():
            self.looked.set()
            self.step_over.wait()
            time.sleep(0.05)
        return found

    @_interruptible.setter
    def _interruptible(self, value):
        self._value = value


def test_a_stop_that_comes_as_the_step_ends_is_taken_back():
    made = threading.Event()
    requests = []

    def work():
        running = Hesitant()
        requests.append(running)

        def step():
            made.set()
            running.looked.wait()
            running.step_over.set()
            return "finished"

        result = running.run(step)
        while not running.acted.wait(0.001):  # where a stray exception would land
            pass
        for _ in range(1000):
            pass
        return result

    thread, outcome = in_thread(work)
    made.wait()
    requests[0].stop("cancelled")
    requests[0].acted.set()
    thread.join()
    assert outcome == ["finished"]
