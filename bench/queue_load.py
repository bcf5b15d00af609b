"""A long queue: how fast tasks are accepted, what 50,000 at once and 100,000 waiting cost, and what waiting costs."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import httpx
from brinery_stack import Stack, running_stack
from harness import BENCH, BenchmarkError, keep, percentile, pss_mib, table, wait_until
from raw_http import connections, submit_all
from workload import ARGUMENTS, describe, stall

import brinery
from brinery.client import default_client
from brinery.spec import new_id

BODY: Final = json.dumps(ARGUMENTS).encode()
MANY: Final = 50_000
LONG: Final = 100_000
WAITERS: Final = 5_000
LOOKS: Final = 200
QUIET_SECONDS: Final = 10
CONNECTIONS: Final = 32
ROUNDS: Final = 3
ALL_DONE_SECONDS: Final = 900


def run(*, seconds: int) -> None:
    """Measure all of it and keep the figures.

    Args:
        seconds: Length of a run that only submits.

    Raises:
        BenchmarkError: wrk is missing, or a task was refused, lost or answered wrongly.
    """
    if shutil.which("wrk") is None:
        raise BenchmarkError("wrk is missing: apt-get install wrk.")
    figures: dict[str, Any] = {}
    with running_stack() as stack:
        with stalled("accepts"):
            figures["submits_per_second"] = [submits_per_second(stack, "accepts", seconds) for _ in range(ROUNDS)]
        print(f"submits/s: {figures['submits_per_second']}", flush=True)
        with stalled("waited-for"):
            figures["commands"] = asyncio.run(waiting(stack, "waited-for"))
        print(f"Redis commands in {QUIET_SECONDS} s: {figures['commands']}", flush=True)
        figures["at_once"] = at_once(stack)
        print(f"{MANY} at once: {figures['at_once']}", flush=True)
        with stalled("long"):
            figures["empty"] = looks(stack, "long")
            before = used_bytes(stack)
            asyncio.run(submit_all(stack.url, stack.api_key, "long", ids(LONG), BODY, at_once=CONNECTIONS))
            figures["full"] = looks(stack, "long")
            figures["bytes_per_queued_task"] = (used_bytes(stack) - before) / LONG
    keep("load", figures, report(figures))


@contextmanager
def stalled(name: str) -> Iterator[None]:
    """Have an endpoint for the length of a block whose tasks are only queued."""
    function = brinery.endpoint(name=name, min_workers=1, timeout_seconds=7200, max_queued=10 * LONG)(stall)
    function.deploy()
    first = function.submit(**ARGUMENTS)
    wait_until(lambda: first.status == "running", f"the first task of {name} runs", timeout_seconds=60)
    yield
    default_client().delete_endpoint(name)
    wait_until(
        lambda: name not in {each["name"] for each in default_client().endpoints()},
        f"{name} is gone",
        timeout_seconds=300,
    )


def ids(count: int) -> list[str]:
    """Return so many ids of tasks."""
    return [new_id("tsk") for _ in range(count)]


# -------------------------------------------------------------------------------------------------------- accepting
def submits_per_second(stack: Stack, endpoint: str, seconds: int) -> float:
    """Submit with `CONNECTIONS` connections at once and return how many tasks a second were accepted.

    Raises:
        BenchmarkError: One was not.
    """
    url = f"{stack.url}/v1/endpoints/{endpoint}/tasks"
    command = ["wrk", "--threads", "1", "--connections", str(CONNECTIONS), "--duration", f"{seconds}s"]
    command += ["--timeout", "30s", "--script", str(BENCH / "wrk_submit.lua"), url]
    keys = {"BENCH_BODY": BODY.decode(), "BENCH_AUTHORIZATION": f"Bearer {stack.api_key}"}
    done = subprocess.run(command, env={**os.environ, **keys}, check=True, capture_output=True, text=True)
    said = json.loads(done.stdout.splitlines()[-1])
    if said["refused"] or said["socket_errors"]:
        raise BenchmarkError(f"Submitting went wrong: {said}")
    return float(said["requests"]) / said["duration_us"] * 1e6


def at_once(stack: Stack) -> dict[str, float]:
    """Submit `MANY` tasks to eight slots as fast as they are taken, wait for all, and return times and memory.

    Raises:
        BenchmarkError: One was refused, is missing, or has a wrong answer.
    """
    function = brinery.endpoint(name="many", min_workers=1, concurrency=8)(describe)
    function.deploy()
    function.submit(**ARGUMENTS).get()
    task_ids = ids(MANY)
    watched = {role: stack.role(role) for role in ("gateway", "forwarder", "controller", "Redis")}
    before = {role: sum(map(pss_mib, processes)) for role, processes in watched.items()}
    most = dict(before)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            for role, processes in watched.items():
                most[role] = max(most[role], sum(map(pss_mib, processes)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        started = time.perf_counter()
        asyncio.run(submit_all(stack.url, stack.api_key, "many", task_ids, BODY, at_once=CONNECTIONS))
        submitted = time.perf_counter()
        wait_until(lambda: open_tasks(stack) == 0, "all are done", timeout_seconds=ALL_DONE_SECONDS)
        finished = time.perf_counter()
    finally:
        ended.set()
        watcher.join()
    asyncio.run(check_results(stack, task_ids))
    grown = {f"{role}_grew_mib": most[role] - before[role] for role in watched}
    return {
        "submits_per_second": MANY / (submitted - started),
        "tasks_per_second": MANY / (finished - started),
        **grown,
    }


def open_tasks(stack: Stack) -> int:
    """Return how many tasks of the endpoint ``many`` are not final."""
    with stack.redis() as redis:
        return int(redis.zcard(f"open:{stack.route('many').id}"))


async def check_results(stack: Stack, task_ids: list[str]) -> None:
    """Read every task.

    Raises:
        BenchmarkError: One is missing, or has a wrong answer.
    """
    expected, left = describe(**ARGUMENTS), iter(task_ids)
    async with connections(stack.url, stack.api_key, CONNECTIONS) as opened, asyncio.TaskGroup() as group:

        async def go_on(connection: Any) -> None:
            for task_id in left:
                status, task = await connection.request("GET", f"/v1/tasks/{task_id}")
                if status != 200 or task.get("result") != expected or task["attempt"] != 1:
                    raise BenchmarkError(f"{task_id}: status {status}, {task}")

        for connection in opened:
            group.create_task(go_on(connection))


# ---------------------------------------------------------------------------------------------------------- waiting
async def waiting(stack: Stack, endpoint: str) -> dict[str, dict[str, int]]:
    """Return the commands that Redis got while nothing happened: with nobody waiting, and with `WAITERS` long-polls."""
    alone = await commands(stack)
    task_ids = ids(100)
    await submit_all(stack.url, stack.api_key, endpoint, task_ids, BODY, at_once=4)
    async with connections(stack.url, stack.api_key, WAITERS) as opened:
        for number, connection in enumerate(opened):
            await connection.send("GET", f"/v1/tasks/{task_ids[number % 100]}?wait_seconds=60")
        await asyncio.sleep(5)
        return {"nobody waits": alone, f"{WAITERS:,} wait": await commands(stack)}


async def commands(stack: Stack) -> dict[str, int]:
    """Return how often each command was called within `QUIET_SECONDS`, leaving out the question itself."""
    with stack.redis() as redis:
        before = called(redis.info("commandstats"))
        await asyncio.sleep(QUIET_SECONDS)
        after = called(redis.info("commandstats"))
    counts = {name: count - before.get(name, 0) for name, count in after.items()}
    return {name: count for name, count in sorted(counts.items()) if count and name != "info"}


def called(stats: dict[str, Any]) -> dict[str, int]:
    """Return how often each command has been called since the server's start."""
    return {name.removeprefix("cmdstat_"): int(values["calls"]) for name, values in stats.items()}


# ------------------------------------------------------------------------------------------------------- a long queue
def looks(stack: Stack, endpoint: str) -> dict[str, float]:
    """Return the median milliseconds of one submission, one look at a task and one page of a list."""
    with httpx.Client(
        base_url=stack.url, headers={"Authorization": f"Bearer {stack.api_key}"}, trust_env=False, timeout=30
    ) as http:

        def median_ms(method: str, path: str, **more: Any) -> float:
            times = []
            for _ in range(LOOKS):
                started = time.perf_counter()
                http.request(method, path, **more).raise_for_status()
                times.append(time.perf_counter() - started)
            return percentile(times, 50) * 1000

        task = http.post(f"/v1/endpoints/{endpoint}/tasks", json=ARGUMENTS).json()
        return {
            "submit": median_ms("POST", f"/v1/endpoints/{endpoint}/tasks", json=ARGUMENTS),
            "show": median_ms("GET", f"/v1/tasks/{task['id']}"),
            "list": median_ms("GET", "/v1/tasks", params={"limit": 50}),
            "list_endpoint": median_ms("GET", "/v1/tasks", params={"endpoint": endpoint, "limit": 50}),
            "list_running": median_ms("GET", "/v1/tasks", params={"status": "running", "limit": 50}),
        }


def used_bytes(stack: Stack) -> float:
    """Return how much memory Redis has for its data."""
    with stack.redis() as redis:
        return float(redis.info("memory")["used_memory"])


# ------------------------------------------------------------------------------------------------------------ report
def report(figures: dict[str, Any]) -> str:
    """Return the Markdown tables."""
    many, empty, full = figures["at_once"], figures["empty"], figures["full"]
    rows = [
        (
            "tasks accepted a second by one gateway, nothing else going on",
            f"{statistics.median(figures['submits_per_second']):,.0f}",
        ),
        (f"{MANY:,} at once: accepted a second, workers running", f"{many['submits_per_second']:,.0f}"),
        (f"{MANY:,} at once: done a second, from the first submission on", f"{many['tasks_per_second']:,.0f}"),
        *(
            (f"{MANY:,} at once: {role} grew by, MiB", f"{many[f'{role}_grew_mib']:.0f}")
            for role in ("gateway", "forwarder", "controller", "Redis")
        ),
        *(
            (f"Redis commands a second, {name}", f"{sum(counts.values()) / QUIET_SECONDS:.1f}")
            for name, counts in figures["commands"].items()
        ),
        ("Redis memory for each queued task, bytes", f"{figures['bytes_per_queued_task']:,.0f}"),
    ]
    waits = [(name.replace("_", " of one "), f"{empty[name]:.2f}", f"{full[name]:.2f}") for name in empty]
    header = ("p50 ms of one request", "empty queue", f"{LONG:,} queued")
    return f"{table(('what', 'figure'), rows)}\n\n{table(header, waits)}"
