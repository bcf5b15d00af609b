"""What one task costs: Redis commands and bytes, and processor time by process, beside what the idle platform uses."""

from __future__ import annotations

import time
from typing import Any, Final

import psutil
from brinery_stack import Stack, role_of, running_stack
from harness import BenchmarkError, cpu_seconds, keep, table
from workload import ARGUMENTS, describe

import brinery

TASKS: Final = 1_000
IDLE_SECONDS: Final = 20.0
ROLES: Final = ("gateway", "forwarder", "Redis", "worker", "controller")


def run() -> None:
    """Measure and keep the figures."""
    with running_stack() as stack:
        function = brinery.endpoint(name="cost", min_workers=1)(describe)
        function.deploy()
        run_tasks(function, 100)
        before = snapshot(stack)
        time.sleep(IDLE_SECONDS)
        idle = difference(before, snapshot(stack))
        before, started = snapshot(stack), time.monotonic()
        run_tasks(function, TASKS)
        seconds = time.monotonic() - started
        used = difference(before, snapshot(stack))
    share = seconds / IDLE_SECONDS
    each = {
        name: {key: (used[name].get(key, 0) - idle[name].get(key, 0) * share) / TASKS for key in used[name]}
        for name in used
    }
    keep("cost", {"idle": idle, "used": used, "seconds": seconds, "each": each}, report(each, idle))


def run_tasks(function: Any, count: int) -> None:
    """Submit tasks and wait for them, sixty-four open at a time.

    Raises:
        BenchmarkError: A result was wrong.
    """
    expected = describe(**ARGUMENTS)
    for answer in function.starmap([ARGUMENTS] * count):
        if answer != expected:
            raise BenchmarkError(f"{answer!r} is wrong.")


def snapshot(stack: Stack) -> dict[str, dict[str, float]]:
    """Return the counters of Redis and of the processes as they stand."""
    with stack.redis() as redis:
        commands = {name[8:]: float(stats["calls"]) for name, stats in redis.info("commandstats").items()}
        traffic = redis.info("stats")
    processor: dict[str, float] = {}
    for process in stack.processes():
        role = role_of(process)
        processor[role] = processor.get(role, 0.0) + cpu_seconds([process]) * 1000
    client = psutil.Process()
    processor["client"] = cpu_seconds([client]) * 1000
    received, sent = float(traffic["total_net_input_bytes"]), float(traffic["total_net_output_bytes"])
    return {"commands": commands, "bytes": {"to Redis": received, "from Redis": sent}, "cpu_ms": processor}


def difference(before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return by how much each counter has grown."""
    return {
        kind: {name: value - before[kind].get(name, 0.0) for name, value in counters.items()}
        for kind, counters in after.items()
    }


def report(each: dict[str, dict[str, float]], idle: dict[str, dict[str, float]]) -> str:
    """Return the Markdown tables."""
    cpu = [
        (role, f"{each['cpu_ms'].get(role, 0):.2f}", f"{idle['cpu_ms'].get(role, 0) / IDLE_SECONDS / 10:.1f}")
        for role in (*ROLES, "client")
    ]
    total = sum(each["cpu_ms"].get(role, 0) for role in ROLES)
    cpu.append(("**the platform**", f"**{total:.2f}**", ""))
    commands = sorted(
        ((name, count) for name, count in each["commands"].items() if count >= 0.05), key=lambda item: -item[1]
    )
    rows = [(name.replace("|", " "), f"{count:.1f}") for name, count in commands]
    rows += [(f"bytes {way}", f"{count:,.0f}") for way, count in each["bytes"].items()]
    header = ("process", "CPU ms for one task", "% of a core when idle")
    return f"{table(header, cpu)}\n\n{table(('Redis, for one task', 'calls'), rows)}"
