"""`brinery tasks`: a task as a timeline, and dead letters looked at, queued again and dropped."""

import json
import os
import pty
import re
import subprocess
import time

import pytest
from little_gateway import KEY
from test_sdk_command_line import BRINERY

from brinery.cli.timeline import describe
from brinery.errors import RemoteError

ID = "tsk_0123456789abcdef0123"
NOON = 1_750_000_000.0
PHASES = dict.fromkeys(("queued", "claimed", "sent", "answered", "stored", "finished"))
RECORD = {
    "id": ID,
    "endpoint": "f",
    "status": "queued",
    "attempt": 1,
    "max_attempts": 3,
    "priority": 4,
    "created_at": NOON,
    "finished_at": None,
    "phases": {**PHASES, "queued": NOON},
    "error": None,
}
DIED = {"type": "worker", "message": "The worker died.\nIt was killed by signal 9.", "context": {}}


@pytest.fixture
def run(desk, gateway):
    def run(*command, check=True, **environment):
        settings = {"BRINERY_URL": gateway.url, "BRINERY_API_KEY": KEY, "TZ": "UTC", **environment}
        return desk.run(BRINERY, "tasks", *command, check=check, **settings)

    return run


@pytest.fixture
def error_of(run):
    def error_of(*command):
        done = run(*command, check=False)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr

    return error_of


@pytest.fixture
def bury(gateway):
    """Makes dead letters and returns their ids, newest first."""

    def bury(count, endpoint="f"):
        ids = [f"tsk_{endpoint}{number}" for number in range(count)]
        for task_id in ids:
            gateway.tasks[task_id] = RECORD | {
                "id": task_id,
                "endpoint": endpoint,
                "status": "failed",
                "attempt": 3,
                "created_at": time.time() - 3600,
                "finished_at": time.time() - 120,
                "error": DIED,
            }
        gateway.dead += ids
        return ids[::-1]

    return bury


@pytest.fixture
def in_utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("in_utc")
def test_a_task_is_told_from_top_to_bottom():
    phases = {"queued": NOON + 1.5, "claimed": NOON + 3.004, "sent": NOON + 3.005, "answered": NOON + 4}
    task = RECORD | {
        "status": "failed",
        "attempt": 2,
        "finished_at": NOON + 4.25,
        "phases": {**PHASES, **phases, "finished": NOON + 4.25},
        "retry_for": ["KeyError", "HTTP 503"],
        "webhook": {
            "url": "https://example.org/hook",
            "username": "ann",
            "status": "pending",
            "attempts": 2,
            "last_status": 500,
            "last_error": None,
            "next_at": NOON + 60,
            "delivered_at": None,
        },
        "error": RemoteError("lost", exception_type="LookupError", traceback="File x").to_json()["error"],
    }
    first = {"attempt": 1, "charge": "spared", "started_at": NOON + 0.5, "ended_at": NOON + 1.5, "reason": "worker"}
    second = {"attempt": 2, "charge": "full", "started_at": NOON + 3.004, "ended_at": NOON + 4, "reason": "remote"}
    attempts = [
        first | {"worker_id": "wrk_1", "error": DIED, "log_tail": "loading\nSegmentation fault\n"},
        second | {"worker_id": None, "error": task["error"], "log_tail": ""},
    ]
    assert list(describe(task, attempts)) == [
        f"id         {ID}",
        "endpoint   f",
        "status     \x1b[31mfailed\x1b[0m",
        "attempt    2 of 3",
        "priority   4",
        "retry for  KeyError, HTTP 503",
        "webhook    https://example.org/hook: pending after 2 tries; last: HTTP 500; next try 2025-06-15 15:07:40",
        f"input      brinery tasks show {ID} --input",
        "error      LookupError: lost",
        "",
        "\x1b[1mtimeline\x1b[0m",
        "  created           2025-06-15 15:06:40.000",
        "  attempt 1 failed  2025-06-15 15:06:41.500       +1,500 ms",
        "      worker on wrk_1 (not counted: it was not at fault)",
        "      worker: The worker died.",
        "      | loading",
        "      | Segmentation fault",
        "  queued            2025-06-15 15:06:41.500           +0 ms",
        "  claimed           2025-06-15 15:06:43.004       +1,504 ms",
        "  sent              2025-06-15 15:06:43.005           +1 ms",
        "  answered          2025-06-15 15:06:44.000         +995 ms",
        "  attempt 2 failed  2025-06-15 15:06:44.000           +0 ms",
        "      remote",
        "      LookupError: lost",
        "  finished          2025-06-15 15:06:44.250         +250 ms",
        "\nRemote traceback:\nFile x",
    ]


@pytest.mark.usefixtures("in_utc")
@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"not_before": NOON + 60}, "next attempt  2025-06-15 15:07:40"),
        ({"expires_at": NOON + 60}, "expires   2025-06-15 15:07:40"),
        ({"status": "succeeded", "result_inline": True, "result": None}, "result    null"),
        ({"status": "succeeded", "result_type": "image/png"}, f"result    image/png: GET /v1/tasks/{ID}/result"),
        (
            {"webhook": {"status": "delivered", "attempts": 1, "delivered_at": NOON}},
            "webhook   delivered after 1 try, 2025-06-15 15:06:40",
        ),
        ({"webhook": {"url": "http://a", "status": "waiting", "attempts": 0}}, "webhook   http://a: waiting"),
        (
            {"webhook": {"url": "http://a", "status": "failed", "attempts": 9, "last_error": "refused"}},
            "webhook   http://a: failed after 9 tries; last: refused",
        ),
    ],
)
def test_what_a_task_has_is_told_and_nothing_else(changes, line):
    lines = list(describe(RECORD | changes, []))
    assert line in lines
    assert len(lines) == len(list(describe(RECORD, []))) + 1


def test_show_prints_plain_lines_json_or_the_input(gateway, run):
    gateway.tasks[ID] = RECORD
    gateway.attempts[ID] = [{"attempt": 1, "ended_at": NOON, "reason": "worker", "error": DIED, "log_tail": "bye"}]
    gateway.inputs[ID] = ("application/json", b'{"x": 1}')
    shown = run("show", ID).stdout
    assert "\x1b" not in shown
    assert "      | bye" in shown.splitlines()
    assert json.loads(run("show", ID, "--json").stdout) == RECORD | {"attempts": gateway.attempts[ID]}
    assert run("show", ID, "--input").stdout == '{"x": 1}'


def test_a_task_that_is_not_there_is_one_line(error_of):
    for command in (["show"], ["cancel"], ["requeue"], ["drop"]):
        assert "tsk_nobody" in error_of(*command, "tsk_nobody")


@pytest.mark.parametrize("command", ["show", "cancel", "requeue", "drop"])
def test_what_is_no_task_id_is_one_line_and_asks_for_nothing(gateway, error_of, command):
    for given in ("", "../keys"):
        assert error_of(command, given).startswith(f"Error: {given!r} is no task id")
    assert not gateway.requests


def test_tasks_of_several_statuses_are_listed(gateway, run):
    for status in ("queued", "failed", "succeeded"):
        gateway.tasks[f"tsk_{status}"] = RECORD | {"id": f"tsk_{status}", "status": status}
    listed = json.loads(run("list", "-s", "queued", "--status", "failed", "--json").stdout)
    assert [task["id"] for task in listed] == ["tsk_failed", "tsk_queued"]
    assert len(json.loads(run("list", "--json").stdout)) == 3


def test_dead_letters_are_a_table_with_the_first_line_of_each_error(bury, run):
    assert run("dead").stdout == "There are no dead letters.\n"
    ids = bury(2) + bury(1, "g")
    header, *rows = run("dead").stdout.splitlines()
    assert header.split() == ["ID", "ENDPOINT", "TRIES", "SUBMITTED", "FAILED", "ERROR"]
    assert {row.split()[0] for row in rows} == set(ids)
    assert re.split("  +", rows[0])[1:] == ["g", "3", "1 h ago", "2 min ago", "worker: The worker died."]
    assert "last submitted first" in run("dead", "--help").stdout
    assert [task["id"] for task in json.loads(run("dead", "-e", "g", "--json").stdout)] == ["tsk_g0"]


@pytest.mark.parametrize("command", ["list", "dead"])
def test_a_list_follows_its_pages_up_to_the_limit_and_says_when_there_are_more(gateway, bury, run, command):
    ids = bury(1_203)
    done = run(command, "--limit", "1201", "--json")
    assert [task["id"] for task in json.loads(done.stdout)] == ids[:1201]
    assert "There are more" in done.stderr
    assert len([path for _, path, _ in gateway.requests if path == "/v1/tasks"]) == 2
    assert len(run(command).stdout.splitlines()) == 51
    done = run(command, "-n", "2000", "--json")
    assert (len(json.loads(done.stdout)), done.stderr) == (1203, "")


def test_a_client_yields_tasks_page_by_page(client, gateway, bury):
    ids = bury(1_203)
    tasks = client.tasks(endpoint="f", dead=True)
    assert next(tasks)["id"] == ids[0]
    assert len(gateway.requests) == 1
    assert [task["id"] for task in tasks] == ids[1:]
    assert [task["id"] for task in client.tasks(limit=3)] == ids[:3]
    page = client.task_page(limit=2)
    assert [task["id"] for task in client.tasks(cursor=page["cursor"], limit=2)] == ids[2:4]


@pytest.mark.parametrize(("verb", "done"), [("requeue", "queued again"), ("drop", "dropped")])
def test_one_dead_letter_is_dealt_with_without_a_question(gateway, bury, run, verb, done):
    (task_id,) = bury(1)
    assert run(verb, task_id).stdout == f"{task_id} is {done}.\n"
    assert not gateway.dead
    assert gateway.tasks.get(task_id, {"status": "gone"})["status"] == ("queued" if verb == "requeue" else "gone")


@pytest.mark.parametrize(("verb", "done"), [("requeue", "queued again"), ("drop", "dropped")])
def test_all_dead_letters_of_an_endpoint_are_dealt_with_and_no_other(gateway, bury, run, error_of, verb, done):
    bury(1_100)
    kept = bury(1, "g")
    assert "1100 tasks" in error_of(verb, "-e", "f", "--all")
    assert len(gateway.dead) == 1_101
    ended = run(verb, "-e", "f", "--all", "--yes")
    assert ended.stdout == f"1100 tasks are {done}.\n"
    assert ended.stderr == f"{done.capitalize()}: 1000 of 1100\n"
    assert gateway.dead == kept


def test_what_could_not_be_done_is_counted_and_the_rest_is_done(gateway, bury, run, error_of):
    ids = bury(3)
    gateway.tasks[ids[1]]["status"] = "running"
    assert f"1 of 3 could not be queued again; the first, {ids[1]}: The task is running" in error_of(
        "requeue", *ids, "--yes"
    )
    assert gateway.dead == [ids[1]]
    done = run("requeue", *ids, "--yes", "--json", check=False)
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert [one["id"] for one in told] == ids
    assert {one["error"]["type"] for one in told if not one["done"]} == {"conflict"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "--endpoint NAME --all"),
        (["-e", "f"], "--endpoint NAME --all"),
        (["--all"], "--endpoint NAME --all"),
        (["tsk_1", "--all"], "either ids, or"),
        (["-e", "f", "--all"], "'f' has no dead letters"),
        (["tsk_1", "tsk_2"], "--yes"),
    ],
)
@pytest.mark.parametrize("verb", ["requeue", "drop"])
def test_a_choice_that_is_not_clear_is_one_line(error_of, verb, arguments, text):
    assert text in error_of(verb, *arguments)


@pytest.mark.parametrize(("answer", "code", "left"), [("n", 1, 2), ("y", 0, 0)])
def test_on_a_terminal_more_than_one_is_asked_about(desk, gateway, bury, answer, code, left):
    ids = bury(2)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "BRINERY_URL": gateway.url, "BRINERY_API_KEY": KEY}
    command = [BRINERY, "tasks", "requeue", *ids]
    with subprocess.Popen(
        command, cwd=desk.folder, env=environment, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        os.write(ours, f"{answer}\n".encode())
        said, _ = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert b"Queue 2 tasks again?" in said
    assert (process.returncode, len(gateway.dead)) == (code, left)


def test_several_tasks_are_cancelled_and_told_one_by_one(gateway, run):
    for number, status in enumerate(("queued", "succeeded")):
        gateway.tasks[f"tsk_{number}"] = RECORD | {"id": f"tsk_{number}", "status": status}
    assert run("cancel", "tsk_0", "tsk_1").stdout.splitlines() == [
        "tsk_0 is cancelled.",
        "tsk_1 had already succeeded; there is nothing to cancel.",
    ]
    told = json.loads(run("cancel", "tsk_0", "tsk_1", "--json").stdout)
    assert [task["status"] for task in told] == ["cancelled", "succeeded"]
