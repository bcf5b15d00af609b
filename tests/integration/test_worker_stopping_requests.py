"""How one running request is stopped, and what its neighbours and its worker see of it."""

import asyncio
import contextlib
import http.client
import os
import re
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import cloudpickle
import pytest
from worker_process import Workers

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def workers(tmp_path):
    found = Workers(tmp_path)
    yield found
    found.stop()


def begin(note):
    if note:
        Path(note).write_text("running")


def end(note):
    if note:
        Path(note).write_text("cleaned up")


def begun():
    print("begun", flush=True)  # noqa: T201 - what a worker prints is how the test hears of it


def wait_begun(worker, calls=1):
    """Until so many calls altogether came to the user's code: one that is stopped before needs no force."""
    # Two that print at once may share a line.
    worker.wait_until(lambda: "".join(worker.out).count("begun") == calls, f"{calls} begun")
    time.sleep(0.1)  # from that line into the call that nothing interrupts


def tight_loop(note: str = ""):
    try:
        begin(note)
        while True:
            pass
    finally:
        end(note)


def sleep(seconds: float):
    begun()
    time.sleep(seconds)
    return "slept"


def hold_the_gil():
    begun()
    re.match(r"(a+)+b", "a" * 40)


async def sleep_async(note: str = ""):
    try:
        begin(note)
        await asyncio.sleep(600)
    finally:
        end(note)


async def stubborn():
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            begun()
            await asyncio.sleep(600)


def swallow():
    while True:
        try:
            begun()
            while True:
                pass
        except BaseException:  # noqa: BLE001, S110 - such user code is what this is about
            pass


def count(note: str = ""):
    try:
        begin(note)
        number = 0
        while True:
            yield number
            number += 1
            time.sleep(0.01)
    finally:
        end(note)


async def count_async(note: str = ""):
    try:
        begin(note)
        number = 0
        while True:
            yield number
            number += 1
            await asyncio.sleep(0.01)
    finally:
        end(note)


def flood():
    while True:
        yield "x" * 1_000_000


@pytest.mark.parametrize("function", [tight_loop, sleep_async, count, count_async])
@pytest.mark.parametrize("path", ["/predict", "/stream"])
def test_a_running_request_is_cancelled_by_an_exception_and_cleans_up(workers, tmp_path, function, path):
    worker = workers.start(function)
    note = tmp_path / "note"
    reply = worker.predict_later("req_a", path=path, note=str(note))
    worker.wait_until(note.exists, "running")
    child = worker.child_pid
    assert worker.cancel("req_a") == {"cancelled": True, "how": "exception"}
    answer = reply.get(timeout=30)
    if path == "/predict":
        assert (answer.status, answer.error["type"]) == (409, "task_cancelled")
    else:
        assert not isinstance(answer, Exception)
    assert note.read_text() == "cleaned up"
    assert worker.status["busy"] == 0
    assert worker.child_pid == child


@pytest.mark.parametrize("function", [sleep, hold_the_gil, stubborn, swallow])
def test_a_request_that_cannot_be_stopped_costs_the_process(workers, function):
    worker = workers.start(function)
    reply = worker.predict_later("req_a", **({"seconds": 600} if function is sleep else {}))
    wait_begun(worker)
    assert worker.cancel("req_a") == {"cancelled": True, "how": "killed"}
    assert isinstance(reply.get(timeout=30), (OSError, http.client.HTTPException))
    status = worker.wait_state("ready").status
    assert status["restarts"] == 1
    assert status["exit"]["signal"] == 9
    assert "req_a" in status["exit"]["reason"]


def test_afterwards_each_request_of_an_ended_process_can_ask_whose_fault_it_was(workers):
    worker = workers.start(sleep, arguments=["--concurrency", "3"])
    replies = [worker.predict_later(name, seconds=600) for name in ("req_a", "req_b")]
    wait_begun(worker, 2)
    assert worker.fate("req_a")["fate"] == "running"
    assert worker.cancel("req_a")["how"] == "killed"
    for reply in replies:
        assert isinstance(reply.get(timeout=30), (OSError, http.client.HTTPException))
    stopped, neighbour = worker.fate("req_a"), worker.fate("req_b")
    assert (stopped["fate"], neighbour["fate"], neighbour["others"]) == ("stopped", "neighbour", 1)
    assert "req_a was cancelled" in neighbour["reason"]
    assert worker.fate("req_none") == {"fate": "unknown", "reason": "", "others": 0}


def test_a_crash_is_told_with_its_signal_and_with_how_many_ran_beside(workers):
    worker = workers.start(sleep, arguments=["--concurrency", "3"])
    replies = [worker.predict_later(name, seconds=600) for name in ("req_a", "req_b")]
    worker.wait_busy(2)
    os.kill(worker.child_pid, signal.SIGKILL)
    for reply in replies:
        reply.get(timeout=30)
    worker.wait_until(lambda: worker.fate("req_a")["fate"] == "crashed", "noticed")
    for name in ("req_a", "req_b"):
        assert worker.fate(name)["others"] == 1
        assert "signal 9 (SIGKILL)" in worker.fate(name)["reason"]


def test_a_worker_that_stops_stays_to_tell_whom_it_cut_off(workers):
    worker = workers.start(sleep, arguments=["--drain-seconds", "0"])
    reply = worker.predict_later("req_a", seconds=600)
    wait_begun(worker)
    worker.process.terminate()
    assert isinstance(reply.get(timeout=30), (OSError, http.client.HTTPException))
    assert worker.fate("req_a")["fate"] in {"neighbour", "running"}  # running: its end is not noticed yet
    assert worker.wait() == 0


def test_many_forced_stops_in_a_row_bring_the_worker_back_each_time(workers):
    worker = workers.start(sleep)
    for number in range(3):
        worker.predict_later(f"req_{number}", seconds=600)
        wait_begun(worker, number + 1)
        assert worker.cancel(f"req_{number}")["how"] == "killed"
        worker.wait_state("ready")
    assert worker.predict(seconds=0).json == "slept"


def test_a_request_that_is_not_there_is_gone(workers):
    worker = workers.start(sleep)
    assert worker.cancel("req_none") == {"cancelled": False, "how": "gone"}
    worker.predict(seconds=0, headers={"X-Brinery-Request-Id": "req_done"})
    assert worker.cancel("req_done") == {"cancelled": False, "how": "gone"}


def test_cancelling_one_request_leaves_its_neighbours_alone(workers):
    worker = workers.start(count, arguments=["--concurrency", "4"])
    replies = {name: worker.predict_later(name) for name in ("req_a", "req_b", "req_c")}
    worker.wait_busy(3)
    assert worker.cancel("req_b")["how"] == "exception"
    assert replies["req_b"].get(timeout=30).status == 409
    assert worker.status["busy"] == 2
    assert replies["req_a"].empty()
    for name in ("req_a", "req_c"):
        assert worker.cancel(name)["how"] == "exception"


def test_two_who_cancel_the_same_request_both_hear_of_it(workers):
    worker = workers.start(sleep)
    worker.predict_later("req_a", seconds=600)
    wait_begun(worker)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(worker.cancel("req_a"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [{"cancelled": True, "how": "killed"}] * 2


@pytest.mark.parametrize("function", [tight_loop, sleep_async])
def test_a_request_over_its_own_timeout_is_stopped(workers, function):
    worker = workers.start(function)
    reply = worker.predict_later(timeout_seconds=0.1).get(timeout=30)
    assert (reply.status, reply.error["type"]) == (504, "upstream_timeout")
    assert worker.status["restarts"] == 0


def test_a_request_over_its_own_timeout_that_cannot_be_stopped_costs_the_process(workers):
    worker = workers.start(sleep)
    reply = worker.predict_later(timeout_seconds=2, seconds=600).get(timeout=30)
    assert isinstance(reply, (OSError, http.client.HTTPException))
    worker.wait_until(lambda: worker.status["restarts"] == 1, "restarted")
    assert "ran out of time" in worker.wait_state("ready").status["exit"]["reason"]
    worker.wait_log("request req_later ran out of time and did not end within 1 s; restarting")


def test_a_caller_whose_time_is_over_first_is_not_told_to_have_cancelled(workers):
    worker = workers.start(sleep)
    worker.predict_later("req_a", timeout_seconds=600, seconds=600)
    wait_begun(worker)
    assert worker.cancel("req_a&reason=timeout") == {"cancelled": True, "how": "killed"}
    worker.wait_log("request req_a ran out of time and did not end within 1 s; restarting")
    worker.wait_state("ready")
    worker.predict_later("req_b", timeout_seconds=600, seconds=600)
    wait_begun(worker, 2)
    assert worker.cancel("req_b")["how"] == "killed"
    worker.wait_log("request req_b was cancelled and did not end within 1 s; restarting")


def test_a_stream_to_a_client_that_does_not_read_can_be_cancelled(workers):
    worker = workers.start(flood)
    child = worker.child_pid
    with socket.create_connection(("127.0.0.1", worker.port)) as client:
        client.sendall(
            b"POST /stream HTTP/1.1\r\nHost: x\r\nX-Brinery-Request-Id: req_a\r\nContent-Length: 2\r\n\r\n{}"
        )
        worker.wait_busy()
        client.recv(100)
        assert worker.cancel("req_a") == {"cancelled": True, "how": "exception"}
    assert worker.child_pid == child


def test_a_worker_whose_user_code_holds_the_gil_is_stuck_and_says_so(workers):
    worker = workers.start(hold_the_gil)
    worker.predict_later("req_a")
    worker.wait_state("stuck")
    assert worker.status["busy"] == 1
    assert worker.cancel("req_a")["how"] == "killed"
    worker.wait_state("ready")


def test_with_every_slot_taken_the_answer_is_busy(workers):
    worker = workers.start(sleep, arguments=["--concurrency", "2", "--drain-seconds", "0"])
    for name in ("req_a", "req_b"):
        worker.predict_later(name, seconds=600)
    worker.wait_busy(2)
    assert worker.status["state"] == "busy"
    for path in ("/predict", "/stream"):
        reply = worker.predict(path=path, seconds=0)
        assert (reply.status, reply.error["type"]) == (429, "worker_busy")
    assert worker.predict(nothing=0).status == 422
    assert worker.request("GET", "/readyz").status == 200


def test_health_is_answered_while_many_are_turned_away(workers):
    worker = workers.start(sleep, arguments=["--drain-seconds", "0"])
    worker.predict_later("req_a", seconds=600)
    worker.wait_busy()
    replies = [worker.predict_later(f"req_{number}", seconds=0) for number in range(40)]
    assert worker.request("GET", "/healthz").status == 200
    assert {reply.get(timeout=30).status for reply in replies} == {429}


def test_the_next_request_of_a_kept_connection_finds_the_slot_free(workers):
    worker = workers.start(sleep)
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", worker.port, timeout=30)) as connection:
        for _ in range(200):
            connection.request("POST", "/predict", '{"seconds": 0}')
            assert connection.getresponse().read() == b'"slept"'


def test_stopping_requests_at_any_moment_never_harms_the_process(workers):
    """Cancels short requests at random moments: each must end as its own, and never somebody else's."""

    def brief(loops: int):
        total = 0
        for number in range(loops):
            total += number
        return loops

    worker = workers.start(brief, arguments=["--concurrency", "2"])
    child = worker.child_pid
    outcomes = {200: 0, 409: 0}
    for number in range(150):
        name = f"req_{number}"
        reply = worker.predict_later(name, loops=20_000 + 1000 * (number % 50))
        how = worker.cancel(name)["how"]
        answer = reply.get(timeout=30)
        outcomes[answer.status] += 1
        assert how in {"exception", "gone"}
        assert worker.predict(loops=1).json == 1
    assert worker.child_pid == child
    assert worker.status["busy"] == 0
    assert outcomes[200] + outcomes[409] == 150
