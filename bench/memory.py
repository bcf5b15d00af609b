"""Memory: PSS of the platform with three endpoints at zero, and what each warm worker adds."""

from __future__ import annotations

import statistics
from typing import Final

import psutil
from brinery_stack import Stack, role_of, running_stack
from harness import keep, pss_mib, table, wait_until
from workload import ARGUMENTS, describe

import brinery

ENDPOINTS: Final = ("first", "second", "third")


def run() -> None:
    """Measure both, and keep the figures."""
    with running_stack() as stack:
        for name in ENDPOINTS:
            # Idle at once, so that nobody waits 300 s for zero.
            brinery.endpoint(name=name, idle_seconds=0)(describe).deploy()
        wait_until(lambda: not workers(stack), "the workers are gone", timeout_seconds=90)
        at_once = by_role(stack.processes())
        wait_until(
            lambda: not {"forwarder", "builder"} & {role_of(process) for process in stack.processes()},
            "forwarders and builder have ended",
            timeout_seconds=240,
        )
        at_zero = by_role(stack.processes())
        functions = [brinery.endpoint(name=name, min_workers=1)(describe) for name in ENDPOINTS]
        for name, function in zip(ENDPOINTS, functions, strict=True):
            function.deploy()
            function.remote(**ARGUMENTS)
            stack.wait_for_workers(name, 1)
        warm = [worker_mib(stack, name) for name in ENDPOINTS]
    figures = {"at_once": at_once, "at_zero": at_zero, "warm_worker_mib": warm}
    keep("memory", figures, report(at_once, at_zero, warm))


def workers(stack: Stack) -> list[psutil.Process]:
    """Return the platform's processes that are workers, those that are stopping included."""
    return stack.role("worker")


def worker_mib(stack: Stack, endpoint: str) -> float:
    """Return the PSS of an endpoint's one worker: supervisor and serving process."""
    return sum(pss_mib(process) for process in stack.worker_processes(endpoint))


def by_role(processes: list[psutil.Process]) -> list[dict[str, str | float]]:
    """Return each process with what it is and its PSS."""
    return [{"role": role_of(process), "pss_mib": pss_mib(process)} for process in processes]


def report(at_once: list[dict[str, str | float]], at_zero: list[dict[str, str | float]], warm: list[float]) -> str:
    """Return the Markdown table."""
    sizes: dict[str, list[float]] = {}
    for process in at_zero:
        sizes.setdefault(str(process["role"]), []).append(float(process["pss_mib"]))
    rows = [(role, str(len(values)), f"{sum(values):.0f}") for role, values in sorted(sizes.items())]
    total = sum(sum(values) for values in sizes.values())
    rows.append(("**the platform, three endpoints at zero**", str(len(at_zero)), f"**{total:.0f}**"))
    first = sum(float(process["pss_mib"]) for process in at_once)
    rows.append(
        ("the same just after the last worker, forwarders and builder not yet ended", str(len(at_once)), f"{first:.0f}")
    )
    rows.append(("**each warm worker** (supervisor and serving process)", "2", f"**{statistics.median(warm):.0f}**"))
    return table(("what", "processes", "PSS MiB"), rows)
