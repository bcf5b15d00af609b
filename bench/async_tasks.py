"""Asynchronous tasks: Brinery's futures beside raw Celery, on the same Redis, result store and number of threads."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
from brinery_stack import Stack, running_stack
from celery_app import TASK, make
from harness import (
    BENCH,
    BenchmarkError,
    cpu_seconds,
    family,
    keep,
    medians,
    percentile,
    s3_server,
    scratch_folder,
    server,
    table,
)
from workload import ARGUMENTS, describe

import brinery

SLOTS: Final = (1, 8)
"""Threads that run tasks: one is the default of an endpoint."""
WAITED: Final = 100
"""Tasks that are submitted and waited for one by one, in each round."""
MANY: Final = 300
"""Tasks that are submitted all at once and then waited for, in each round."""
TIMEOUT_SECONDS: Final = 60
CELERY_INTERVAL_SECONDS: Final = 0.001
"""How often Celery's own client looks for a result that no message announces; its default is 0.5."""


@dataclass(frozen=True, kw_only=True)
class Queue:
    """One way to run tasks.

    Args:
        name: As the table calls it.
        slots: Threads that run tasks.
        submit: Hands in one task and returns what `get` takes.
        get: Waits for the result.
        processes: Returns the live processes that serve it, Redis included.
    """

    name: str
    slots: int
    submit: Callable[[], Any]
    get: Callable[[Any], Any]
    processes: Callable[[], list[psutil.Process]]


def run(*, rounds: int, on_s3: bool = False) -> None:
    """Measure all of them in turns, and keep the figures.

    Args:
        rounds: How often each is measured.
        on_s3: Keep results on an S3 server, ``rclone serve s3``, instead of in a folder.

    Raises:
        BenchmarkError: A worker did not start, or a result was wrong.
    """
    samples: dict[str, list[dict[str, float]]] = {}
    with ExitStack() as running:
        settings = running.enter_context(s3_server()) if on_s3 else {}
        stack = running.enter_context(running_stack(settings))
        queues = [brinery_queue(stack, slots) for slots in SLOTS]
        for results in ("store",) if on_s3 else ("store", "redis"):
            queues += [running.enter_context(celery_queue(stack, results, slots)) for slots in SLOTS]
        for queue in queues:
            measure(queue, waited=10, many=10)  # warms connections up
        for number in range(rounds):
            for queue in queues:
                sample = measure(queue, waited=WAITED, many=MANY)
                samples.setdefault(f"{queue.name}|{queue.slots}", []).append(sample)
                print(f"round {number + 1}: {queue.name}, {queue.slots} slots: {sample}", flush=True)
    keep("async-s3" if on_s3 else "async", {"samples": samples}, report(samples))


# ------------------------------------------------------------------------------------------------------ queues
def brinery_queue(stack: Stack, slots: int) -> Queue:
    """Deploy the function with so many slots, warm."""
    function = brinery.endpoint(name=f"describe-{slots}", min_workers=1, concurrency=slots)(describe)
    function.deploy()
    return Queue(
        name="Brinery",
        slots=slots,
        submit=lambda: function.submit(**ARGUMENTS),
        get=lambda future: future.get(timeout=TIMEOUT_SECONDS),
        processes=stack.processes,
    )


@contextmanager
def celery_queue(stack: Stack, results: str, slots: int) -> Iterator[Queue]:
    """Run a raw Celery worker with so many threads on the platform's Redis."""
    queue_name = f"bench-{results}-{slots}"
    app = make(results)
    task = app.tasks[TASK]
    options = ["--pool", "threads", "--concurrency", str(slots), "--queues", queue_name, "--loglevel", "warning"]
    node = f"{queue_name}@bench"
    command: list[str | Path] = [sys.executable, "-m", "celery", "-A", "celery_app", "worker", *options, "-n", node]
    env = {"PYTHONPATH": str(BENCH), "BENCH_CELERY_RESULTS": results}
    waiting = {} if results == "redis" else {"interval": CELERY_INTERVAL_SECONDS}

    def ready() -> bool:
        return bool(app.control.ping(destination=[node], timeout=1.0))

    with scratch_folder() as folder, server(queue_name, command, folder, ready=ready, env=env) as pid:
        redis = stack.role("Redis")
        yield Queue(
            name=f"raw Celery, results in {'Redis' if results == 'redis' else 'the same store'}",
            slots=slots,
            submit=lambda: task.apply_async(kwargs=ARGUMENTS, queue=queue_name),
            get=lambda result: result.get(timeout=TIMEOUT_SECONDS, **waiting),
            processes=lambda: [*family([pid]), *redis],
        )


# ------------------------------------------------------------------------------------------------ measurements
def measure(queue: Queue, *, waited: int, many: int) -> dict[str, float]:
    """Run tasks one by one, then many at once, and return the figures of this run.

    Raises:
        BenchmarkError: A result was wrong.
    """
    expected = describe(**ARGUMENTS)
    processes = queue.processes()
    latencies = []
    for _ in range(waited):
        started = time.perf_counter()
        answer = queue.get(queue.submit())
        latencies.append(time.perf_counter() - started)
        if answer != expected:
            raise BenchmarkError(f"{queue.name} answered {answer!r} instead of {expected!r}.")
    before, client_before, started = cpu_seconds(processes), time.process_time(), time.perf_counter()
    handles = [queue.submit() for _ in range(many)]
    submitted = time.perf_counter()
    answers = [queue.get(handle) for handle in handles]
    seconds = time.perf_counter() - started
    if answers != [expected] * many:
        raise BenchmarkError(f"{queue.name} gave wrong answers among {many} tasks.")
    return {
        "p50_ms": percentile(latencies, 50) * 1000,
        "p95_ms": percentile(latencies, 95) * 1000,
        "tasks_per_second": many / seconds,
        "submits_per_second": many / (submitted - started),
        "cpu_ms_per_task": (cpu_seconds(processes) - before) * 1000 / many,
        "client_cpu_ms_per_task": (time.process_time() - client_before) * 1000 / many,
    }


# ------------------------------------------------------------------------------------------------------ report
def report(samples: dict[str, list[dict[str, float]]]) -> str:
    """Return the Markdown table."""
    header = (
        *("queue", "slots", "submit→get p50 ms", "p95 ms", "tasks/s", "of raw Celery's", "submits/s"),
        *("server CPU ms/task", "client CPU ms/task"),
    )
    rows = []
    for key, measured in samples.items():
        name, slots = key.split("|")
        middle = medians(measured)
        reference = samples[f"raw Celery, results in the same store|{slots}"]
        ratio = statistics.median(
            ours["tasks_per_second"] / theirs["tasks_per_second"]
            for ours, theirs in zip(measured, reference, strict=True)
        )
        rows.append(
            (
                *(name, slots, f"{middle['p50_ms']:.1f}", f"{middle['p95_ms']:.1f}"),
                *(f"{middle['tasks_per_second']:,.0f}", f"{ratio:.2f}", f"{middle['submits_per_second']:,.0f}"),
                *(f"{middle['cpu_ms_per_task']:.2f}", f"{middle['client_cpu_ms_per_task']:.2f}"),
            )
        )
    rows.sort(key=lambda row: int(row[1]))
    return table(header, rows)
