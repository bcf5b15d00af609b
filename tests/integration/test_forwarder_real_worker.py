"""A real forwarder before a real worker: retries, phases, reports, forced stops, crashes and whose fault they were."""

import itertools
import os
import re
import sys
import time
from pathlib import Path

import cloudpickle
import orjson
import pytest
from task_records import ENDPOINT, new_task, until_final
from worker_process import Workers

from brinery.spec import EndpointSpec, EndpointStatus, TaskStatus
from brinery_platform.records import events_key
from brinery_platform.routes import ROUTING, EndpointRoute, WorkerRoute
from servers import wait_for

cloudpickle.register_pickle_by_value(sys.modules[__name__])

WORKER_ID = "wrk_real"


class CustomError(ValueError):
    pass


class HttpError(Exception):
    def __init__(self, status):
        super().__init__(f"status {status}")
        self.response = type("Response", (), {"status_code": status})()


def spin():
    while True:
        pass


def refuse_to_end():
    while True:
        try:
            while True:
                pass
        except BaseException:  # noqa: BLE001, S110 - such user code is what this is about
            pass


def hold_the_gil():
    re.match(r"(a+)+b", "a" * 40)


def large_integer():
    return len(str(7 ** (10**8)))


def behave(case: str = "", note: str = "", log: str = "", seconds: float = 0.0, until: int = 0):
    """Do what a case says; each start is noted, one line each, and 50 lines are written to a log."""
    from brinery import current_request

    request = current_request()
    if note:
        with Path(note).open("a") as file:
            file.write(f"{request.task_id} {request.attempt}\n")
    if log:
        with Path(log).open("a") as file:
            file.writelines(f"line {number} of attempt {request.attempt} {'x' * 100}\n" for number in range(50))
    if until and request.attempt >= until:
        return "done"
    if case == "custom":
        raise CustomError("as I said")
    if case == "http":
        raise HttpError(503)
    if case == "crash":
        os.kill(os.getpid(), 9)
    if case == "exit":
        os._exit(7)
    if case == "spin":
        spin()
    if case == "stubborn":
        refuse_to_end()
    if case == "regex":
        hold_the_gil()
    if case == "integer":
        large_integer()
    time.sleep(seconds)
    return "done"


@pytest.fixture
def started(tmp_path, redis_client, redis_url, start_forwarder):
    """Start a worker of so many slots, whose log lies where the runtime keeps it, and a forwarder before it."""
    workers = Workers(tmp_path)

    def start(concurrency: int = 1):
        # At once, as slow machines differ: what the test is about is what comes after it.
        worker = workers.start(behave, arguments=["--concurrency", str(concurrency), "--drain-seconds", "0"])
        route = EndpointRoute(
            id=ENDPOINT,
            owner="ann",
            status=EndpointStatus.READY,
            reason="",
            version=1,
            spec=EndpointSpec(name="real", bundle_id="bun_1", concurrency=concurrency),
            workers=(
                WorkerRoute(
                    id=WORKER_ID,
                    url=f"http://127.0.0.1:{worker.port}",
                    control_url=f"http://127.0.0.1:{worker.control_port}",
                ),
            ),
        )
        redis_client.hset(ROUTING, ENDPOINT, route.dumps())
        start_forwarder(ENDPOINT, redis_url=redis_url)
        return worker

    yield start
    workers.stop()


def submit(tasks, case="", *, wanted=None, **changes):
    return tasks.submit(new_task({"case": case, **(wanted or {})}, **changes)).task.id


def attempts(client, task_id):
    return [orjson.loads(raw) for raw in client.lrange(f"attempts:{task_id}", 0, -1)]


def reasons(client, task_id):
    return [fields[b"reason"].decode() for _, fields in client.xrange(events_key(task_id))]


def log_of_worker(home):
    """Return the file where the runtime keeps the worker's log, for tests to write to."""
    log = home / "logs" / "workers" / f"{WORKER_ID}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    return log


def starts(note):
    return note.read_text().split("\n")[:-1] if note.exists() else []


# ---------------------------------------------------------------------------------------------------------- retries
@pytest.mark.parametrize(
    ("case", "entry"), [("custom", "ValueError"), ("custom", "CustomError"), ("http", "HTTP 503"), ("http", "HTTP 500")]
)
def test_an_error_that_retry_for_names_is_tried_again_until_it_succeeds(
    started, tasks, objects, redis_client, case, entry
):
    started()
    task_id = submit(tasks, case, wanted={"until": 2}, retry_for=["NothingError", entry])
    task = until_final(tasks, task_id, objects=objects)
    assert (task.status, task.attempt, task.result) == (TaskStatus.SUCCEEDED, 2, b'"done"')
    assert f"retry_for {entry}" in reasons(redis_client, task_id)
    (report,) = attempts(redis_client, task_id)
    assert (report["attempt"], report["charge"], report["worker_id"]) == (1, "full", WORKER_ID)
    assert report["reason"] == f"retry_for {entry}"
    assert report["error"]["type"] == "remote"
    assert report["started_at"] <= report["ended_at"] <= task.started_at


def test_an_error_that_retry_for_does_not_name_is_the_answer(started, tasks, redis_client):
    started()
    task_id = submit(tasks, "custom", retry_for=["KeyError", "HTTP 503"])
    task = until_final(tasks, task_id)
    assert (task.status, task.attempt) == (TaskStatus.FAILED, 1)
    assert task.error["context"]["exception_type"] == "CustomError"
    assert redis_client.zcard(f"dead:{ENDPOINT}") == 0
    assert [report["reason"] for report in attempts(redis_client, task_id)] == ["remote"]


def test_out_of_attempts_the_last_error_stays_and_the_task_is_a_dead_letter(started, tasks, objects, redis_client):
    started()
    task_id = submit(tasks, "custom", retry_for=["ValueError"], max_attempts=2)
    task = until_final(tasks, task_id, objects=objects)
    assert (task.status, task.attempt) == (TaskStatus.FAILED, 2)
    assert task.error["message"] == "as I said"
    assert redis_client.zrange(f"dead:{ENDPOINT}", 0, -1) == [task_id.encode()]
    assert [report["attempt"] for report in attempts(redis_client, task_id)] == [1, 2]


# --------------------------------------------------------------------------------------------------- phases, reports
def test_the_phases_of_a_task_are_in_their_order(started, tasks):
    started()
    task = until_final(tasks, submit(tasks, wanted={"seconds": 0.3}))
    phases = [task.queued_at, task.started_at, task.sent_at, task.answered_at, task.stored_at, task.finished_at]
    assert phases == sorted(phases)
    assert task.answered_at - task.sent_at >= 0.3


def test_a_dead_letter_tells_the_last_words_of_its_worker(tmp_path, started, tasks, objects, redis_client):
    worker = started()
    task_id = submit(tasks, "crash", wanted={"log": str(log_of_worker(tmp_path))}, max_attempts=1)
    task = until_final(tasks, task_id, objects=objects)
    assert (task.status, task.error["type"]) == (TaskStatus.FAILED, "worker")
    assert "signal 9 (SIGKILL)" in task.error["message"]
    (report,) = attempts(redis_client, task_id)
    assert report["log_tail"].endswith("line 49 of attempt 1 " + "x" * 100)
    assert len(report["log_tail"].splitlines()) == 30
    assert len(report["log_tail"]) <= 4096
    assert report["error"]["message"] == task.error["message"]
    worker.wait_state("ready")


def test_the_last_words_are_those_since_the_attempt_began(tmp_path, started, tasks, objects, redis_client):
    started()
    log = log_of_worker(tmp_path)
    log.write_text("what another task said\n")
    loud = submit(tasks, "custom", wanted={"log": str(log)}, retry_for=["ValueError"], max_attempts=2)
    until_final(tasks, loud, objects=objects)
    assert [set(report["log_tail"].split()) & {"1", "2"} for report in attempts(redis_client, loud)] == [{"1"}, {"2"}]
    silent = submit(tasks, "custom")
    until_final(tasks, silent)
    assert [report["log_tail"] for report in attempts(redis_client, silent)] == [""]


def test_an_exit_of_user_code_is_told_with_its_code(started, tasks, objects):
    started()
    task = until_final(tasks, submit(tasks, "exit", max_attempts=1), objects=objects)
    assert "exit code 7" in task.error["message"]


# ------------------------------------------------------------------------------------------------ stopping what runs
@pytest.mark.parametrize("case", ["spin", "sleep", "stubborn", "regex", "integer"])
def test_a_running_task_is_cancelled_whatever_it_does_and_its_worker_serves_again(
    started, tasks, objects, tmp_path, case
):
    worker = started()
    note = tmp_path / "note"
    task_id = submit(tasks, case, wanted={"seconds": 600.0, "note": str(note)})
    wait_for(lambda: starts(note))
    begun = time.monotonic()
    assert tasks.cancel(task_id) == "requested"
    assert until_final(tasks, task_id).status is TaskStatus.CANCELLED
    # Two seconds are promised; a machine that is busy with other tests gets more.
    assert time.monotonic() - begun < 10
    assert until_final(tasks, submit(tasks), objects=objects).status is TaskStatus.SUCCEEDED
    assert worker.status["busy"] == 0


@pytest.mark.parametrize("case", ["spin", "sleep", "stubborn", "regex"])
def test_an_attempt_over_its_timeout_is_stopped_whatever_it_does(started, tasks, objects, tmp_path, redis_client, case):
    worker = started()
    note = tmp_path / "note"
    task_id = submit(
        tasks, case, wanted={"seconds": 600.0, "note": str(note), "until": 2}, timeout_seconds=1.0, max_attempts=2
    )
    task = until_final(tasks, task_id, objects=objects)
    assert (task.status, task.attempt) == (TaskStatus.SUCCEEDED, 2)
    assert starts(note) == [f"{task_id} 1", f"{task_id} 2"]
    assert [report["reason"] for report in attempts(redis_client, task_id)] == ["upstream_timeout"]
    assert worker.status["busy"] == 0


def test_after_a_forced_stop_no_task_is_claimed_before_the_one_ahead_of_it_has_been_answered(
    started, tasks, objects, tmp_path
):
    started()
    note = tmp_path / "note"
    first = submit(tasks, "regex", wanted={"note": str(note)})
    wait_for(lambda: starts(note))
    waiting = [submit(tasks, wanted={"seconds": 0.3}) for _ in range(4)]
    tasks.cancel(first)
    ended = [until_final(tasks, task_id, objects=objects) for task_id in (first, *waiting)]
    assert ended[0].status is TaskStatus.CANCELLED
    assert {task.status for task in ended[1:]} == {TaskStatus.SUCCEEDED}
    # The worker's process is being started again meanwhile: the only slot is the first one's that waits for it.
    runs = sorted(ended[1:], key=lambda task: task.started_at)
    for earlier, later in itertools.pairwise(runs):
        assert earlier.answered_at <= later.started_at, "one slot, one running task"


# ------------------------------------------------------------------------------------------------------ whose fault
def test_the_neighbours_of_a_forced_stop_lose_nothing_but_time(started, tasks, objects, tmp_path, redis_client):
    started(concurrency=4)
    note = tmp_path / "note"
    wanted = {"seconds": 600.0, "note": str(note), "until": 2}
    neighbours = [submit(tasks, "sleep", wanted=wanted, max_attempts=1) for _ in range(2)]
    wait_for(lambda: len(starts(note)) == 2)  # before one holds the GIL
    stubborn = submit(tasks, "regex", wanted={"note": str(note)})
    wait_for(lambda: len(starts(note)) == 3)
    tasks.cancel(stubborn)
    assert until_final(tasks, stubborn).status is TaskStatus.CANCELLED
    for task_id in neighbours:
        task = until_final(tasks, task_id, objects=objects)
        assert (task.status, task.attempt, task.max_attempts) == (TaskStatus.SUCCEEDED, 2, 2)
        (report,) = attempts(redis_client, task_id)
        assert (report["charge"], report["reason"]) == ("spared", "neighbour")
        assert stubborn in report["error"]["message"], "it says for whose sake the process was ended"
        assert not task.alone


def test_a_task_that_kills_its_worker_every_time_takes_no_other_with_it(
    started, tasks, objects, tmp_path, redis_client
):
    started(concurrency=3)
    note = tmp_path / "note"
    # They all begin before the first crash, which is told apart by its attempt.
    healthy = [
        submit(tasks, "sleep", wanted={"seconds": 600.0, "note": str(note), "until": 2}, max_attempts=1)
        for _ in range(2)
    ]
    wait_for(lambda: len(starts(note)) == 2)
    killer = submit(tasks, "crash", wanted={"note": str(note)}, max_attempts=2)
    for task_id in healthy:
        task = until_final(tasks, task_id, objects=objects)
        assert (task.status, task.attempt, task.alone) == (TaskStatus.SUCCEEDED, 2, True)
        (report,) = attempts(redis_client, task_id)
        assert (report["charge"], report["reason"]) == ("spared", "crashed together")
    task = until_final(tasks, killer, objects=objects)
    assert (task.status, task.error["type"]) == (TaskStatus.FAILED, "worker")
    assert [report["charge"] for report in attempts(redis_client, killer)] == ["spared", "full", "full"]
    assert redis_client.zrange(f"dead:{ENDPOINT}", 0, -1) == [killer.encode()]


def test_what_a_stopping_worker_cuts_off_is_not_charged(started, tasks, tmp_path, redis_client):
    worker = started()
    note = tmp_path / "note"
    task_id = submit(tasks, "sleep", wanted={"seconds": 600.0, "note": str(note)}, max_attempts=1)
    wait_for(lambda: starts(note))
    worker.stop()
    wait_for(lambda: attempts(redis_client, task_id))
    (report,) = attempts(redis_client, task_id)
    assert (report["charge"], report["reason"]) == ("spared", "neighbour")
    assert tasks.get(task_id).status is TaskStatus.QUEUED
