"""`brinery tasks` and many futures against the whole platform: what a user looks at when something went wrong."""

import json
import re

import pytest

from stack import wait_until

DOOMED = """
import os
from brinery import endpoint

@endpoint(max_attempts=1, retry_for=["LookupError"])
def doomed(x: int, ok: bool = False) -> int:
    print("last words of", x, flush=True)
    if not ok:
        os._exit(7)
    return x

@endpoint(retry_for=[LookupError])
def flaky(x: int) -> int:
    from brinery import current_request
    if current_request().attempt == 1:
        raise KeyError(x)
    return x
"""


@pytest.fixture(scope="module")
def doomed(stack):
    """An endpoint whose tasks kill their workers."""
    (stack.desk / "doom.py").write_text(DOOMED)
    stack.brinery("deploy", "doom.py")
    return stack


def submitted(stack, count, name="doomed"):
    return stack.run(f"""
        import json
        from doom import {name}
        print(json.dumps([{name}.submit(x).id for x in range({count})]))
    """)


def ended(stack, ids):
    with stack.http() as http:
        for task_id in ids:
            wait_until(
                lambda: http.get(f"/v1/tasks/{task_id}").json()["finished_at"],  # noqa: B023 - called in this turn
                seconds=120,
                what=f"{task_id} to end",
            )


def test_futures_come_as_they_are_completed_and_a_thousand_are_awaited_at_once(stack):
    assert stack.run("""
        import asyncio, json
        from brinery import Future, as_completed
        from kit import add

        ids = [future.id for future in [add.submit(i, 0) for i in range(20)]]
        results = sorted(future.get() for future in as_completed((Future.from_id(i) for i in ids), timeout=100))

        async def run():
            futures = await asyncio.gather(*(add.asubmit(i, 0) for i in range(1000)))
            awaited = await asyncio.gather(*futures)
            again = [Future.from_id(future.id) for future in futures]
            completed = [await future async for future in as_completed(again, timeout=100)]
            mapped = [result async for result in add.amap(range(100))]
            return awaited == list(range(1000)) == sorted(completed) and mapped == list(range(1, 101))

        print(json.dumps([results, asyncio.run(run())]))
    """) == [list(range(20)), True]


def test_as_completed_names_a_task_that_is_not_there(stack):
    assert "tsk_nobody" in stack.run("""
        import json
        from brinery import Future, NotFoundError, as_completed
        try:
            list(as_completed([Future.from_id("tsk_nobody")]))
        except NotFoundError as error:
            print(json.dumps(str(error)))
    """)


def test_a_succeeded_task_is_shown_as_a_timeline_with_its_result(stack):
    task_id = stack.run("""
        import json
        from kit import add
        future = add.submit(2, 3)
        future.get(60)
        print(json.dumps(future.id))
    """)
    shown = stack.brinery("tasks", "show", task_id).stdout.splitlines()
    facts = dict(re.split(r"  +", line, maxsplit=1) for line in shown[: shown.index("")])
    assert (facts["id"], facts["status"], facts["result"]) == (task_id, "succeeded", "5")
    phases = [line.split()[0] for line in shown[shown.index("timeline") + 1 :]]
    assert [phase for phase in phases if phase != "created"] == [
        "queued",
        "claimed",
        "sent",
        "answered",
        "stored",
        "finished",
    ]
    assert json.loads(stack.brinery("tasks", "show", task_id, "--input").stdout) == {"a": 2, "b": 3}


def test_an_error_that_was_asked_for_is_tried_again_and_both_attempts_are_shown(doomed):
    (task_id,) = submitted(doomed, 1, "flaky")
    ended(doomed, [task_id])
    task = doomed.json("tasks", "show", task_id)
    assert (task["status"], task["attempt"], task["retry_for"]) == ("succeeded", 2, ["LookupError"])
    assert [attempt["attempt"] for attempt in task["attempts"]] == [1]
    shown = doomed.brinery("tasks", "show", task_id).stdout
    assert "attempt 1 failed" in shown
    assert "KeyError: 0" in shown


def test_dead_letters_are_listed_looked_into_queued_again_and_dropped(doomed):
    ids = submitted(doomed, 3)
    ended(doomed, ids)
    assert {task["id"] for task in doomed.json("tasks", "dead", "-e", "doomed")} >= set(ids)
    line = next(line for line in doomed.brinery("tasks", "dead").stdout.splitlines() if line.startswith(ids[0]))
    assert "doomed" in line
    shown = doomed.brinery("tasks", "show", ids[0]).stdout
    assert "attempt 1 failed" in shown
    assert "last words of 0" in shown

    assert doomed.brinery("tasks", "requeue", ids[0]).stdout == f"{ids[0]} is queued again.\n"
    ended(doomed, ids[:1])
    done = doomed.brinery("tasks", "requeue", "--endpoint", "doomed", "--all", check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "--yes" in done.stderr

    assert doomed.brinery("tasks", "drop", ids[0]).stdout == f"{ids[0]} is dropped.\n"
    assert "is dropped" not in doomed.brinery("tasks", "drop", "tsk_nobody", check=False).stdout
    assert doomed.brinery("tasks", "drop", "-e", "doomed", "--all", "--yes").stdout == "2 tasks are dropped.\n"
    assert doomed.brinery("tasks", "dead", "-e", "doomed").stdout == "There are no dead letters.\n"


def test_a_list_follows_its_pages_and_says_when_there_are_more(stack):
    stack.run("""
        import json
        from kit import add
        print(json.dumps(list(add.map(range(6)))))
    """)
    done = stack.brinery("tasks", "list", "-e", "add", "--status", "succeeded", "--limit", "5")
    assert len(done.stdout.splitlines()) == 6
    assert "There are more" in done.stderr
    assert len(stack.json("tasks", "list", "-e", "add", "--limit", "3")) == 3


def test_several_tasks_are_cancelled_at_once(stack):
    ids = stack.run("""
        import json
        from kit import doze
        print(json.dumps([doze.submit(60).id for _ in range(3)]))
    """)
    stack.brinery("tasks", "cancel", *ids)
    ended(stack, ids)
    assert {task["status"] for task in stack.json("tasks", "cancel", *ids)} == {"cancelled"}
