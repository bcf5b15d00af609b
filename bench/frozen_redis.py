"""Synchronous calls while Redis is frozen: their latency beside that of the same calls with Redis well."""

from __future__ import annotations

import json
import signal
import time
from typing import Final

import httpx
from brinery_stack import Stack, running_stack
from harness import BenchmarkError, keep, medians, percentile, table
from workload import ARGUMENTS, describe

import brinery

SECONDS: Final = 20.0
"""Longer than leases, health checks and socket timeouts."""


def run(*, rounds: int) -> None:
    """Measure both in turns and keep the figures."""
    samples: dict[str, list[dict[str, float]]] = {"Redis well": [], "Redis frozen": []}
    with running_stack() as stack:
        brinery.endpoint(name="steady", min_workers=1)(describe).deploy()
        calls(stack, 2.0)
        (redis,) = stack.role("Redis")
        for number in range(rounds):
            samples["Redis well"].append(calls(stack, SECONDS))
            redis.send_signal(signal.SIGSTOP)
            try:
                samples["Redis frozen"].append(calls(stack, SECONDS))
            finally:
                redis.send_signal(signal.SIGCONT)
            print(f"round {number + 1}: {[found[-1] for found in samples.values()]}", flush=True)
            time.sleep(3)
    rows = []
    for name, measured in samples.items():
        middle = medians(measured)
        rows.append((name, *(f"{middle[key]:,.2f}" for key in ("per_second", "p50_ms", "p99_ms", "slowest_ms"))))
    keep("frozen", {"samples": samples}, table(("", "requests/s", "p50 ms", "p99 ms", "slowest ms"), rows))


def calls(stack: Stack, seconds: float) -> dict[str, float]:
    """Call over one connection for so long and return rate and latencies.

    Raises:
        BenchmarkError: An answer was wrong.
    """
    body, expected = json.dumps(ARGUMENTS).encode(), describe(**ARGUMENTS)
    headers = {"Authorization": f"Bearer {stack.api_key}", "Content-Type": "application/json"}
    times = []
    with httpx.Client(base_url=stack.url, headers=headers, trust_env=False, timeout=30) as http:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            started = time.perf_counter()
            reply = http.post("/v1/endpoints/steady/predict", content=body)
            times.append((time.perf_counter() - started) * 1000)
            if reply.status_code != 200 or reply.json() != expected:
                raise BenchmarkError(f"{reply.status_code}: {reply.text[:200]}")
    return {
        "per_second": len(times) / seconds,
        "p50_ms": percentile(times, 50),
        "p99_ms": percentile(times, 99),
        "slowest_ms": max(times),
    }
