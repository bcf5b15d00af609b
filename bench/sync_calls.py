"""Synchronous calls: one function behind Flask, LitServe, Brinery's gateway and Brinery's worker, under wrk.

One worker each. Every answer is compared. The servers take turns within each round, so that a noisy minute of
the machine hits all of them, and what is compared is the median of the rounds' ratios.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
from brinery_stack import Stack, running_stack
from harness import (
    BENCH,
    PEERS_PYTHON,
    BenchmarkError,
    cpu_seconds,
    family,
    free_port,
    keep,
    listening,
    medians,
    prepare_peers,
    scratch_folder,
    server,
    table,
)
from workload import ARGUMENTS, describe

import brinery

CONNECTIONS: Final = (1, 32)
BODY: Final = json.dumps(ARGUMENTS)
SETTLE_SECONDS: Final = 5.0
"""What a deployment starts, such as the forwarder, has done its imports after that."""
IDLE_SECONDS: Final = 5.0
REFERENCE: Final = "LitServe"
GATEWAY, WORKER = "Brinery (gateway, concurrency 1)", "Brinery worker, called directly"
GATEWAY_32: Final = "Brinery (gateway, concurrency 32)"


@dataclass(frozen=True, kw_only=True)
class Target:
    """One server under load.

    Args:
        name: As the table calls it.
        url: What is posted to, by number of connections.
        authorization: Value of the header, or empty.
        processes: Returns its live processes.
    """

    name: str
    url: dict[int, str]
    authorization: str = ""
    processes: Callable[[], list[psutil.Process]]


def run(*, rounds: int, seconds: int) -> None:
    """Measure all servers and keep the figures.

    Args:
        rounds: How often each server is measured at each number of connections.
        seconds: Length of one measurement.

    Raises:
        BenchmarkError: wrk is missing, a server did not start, or an answer was wrong.
    """
    if shutil.which("wrk") is None:
        raise BenchmarkError("wrk is missing; `apt-get install wrk` brings it.")
    prepare_peers()
    samples: dict[str, list[dict[str, float]]] = {}
    with ExitStack() as running:
        targets = [running.enter_context(flask()), running.enter_context(litserve())]
        targets += brinery_targets(running.enter_context(running_stack()))
        expected = {target.name: first_answer(target) for target in targets}
        idle = idle_percent(targets)
        for number in range(-1, rounds):  # the first round only warms up
            for target in targets:
                for connections in target.url:
                    sample = load(target, connections, expected[target.name], seconds=seconds if number >= 0 else 1)
                    if number >= 0:
                        samples.setdefault(f"{target.name}|{connections}", []).append(sample)
                        print(
                            f"round {number + 1}: {target.name}, {connections} connections: {sample}",
                            flush=True,
                        )
    keep("sync", {"samples": samples, "idle_cpu_percent": idle}, report(samples, idle))
    bad = [key for key, rows in samples.items() for row in rows if row["bad"]]
    if bad:
        raise BenchmarkError(f"Wrong answers or errors from: {', '.join(sorted(set(bad)))}.")


# ---------------------------------------------------------------------------------------------------- servers
@contextmanager
def flask() -> Iterator[Target]:
    """Run Flask under gunicorn with one gthread worker of one thread, its fastest setting here."""
    port = free_port()
    options = ["-w", "1", "-k", "gthread", "--threads", "1", "--keep-alive", "75", "-b", f"127.0.0.1:{port}"]
    command: list[str | Path] = [PEERS_PYTHON, "-m", "gunicorn", *options, "flask_server:app"]
    with peer("gunicorn + Flask", command, port) as target:
        yield target


@contextmanager
def litserve() -> Iterator[Target]:
    """Run LitServe with one worker and one API server."""
    port = free_port()
    with peer("LitServe", [PEERS_PYTHON, BENCH / "peers/litserve_server.py", str(port)], port) as target:
        yield target


@contextmanager
def peer(name: str, command: list[str | Path], port: int) -> Iterator[Target]:
    """Run a peer from ``bench/.venv``; its log and working folder are temporary."""
    env = {"PYTHONPATH": f"{BENCH}:{BENCH / 'peers'}"}
    with (
        scratch_folder() as folder,
        server(name, command, folder, ready=lambda: listening(port), env=env) as pid,
    ):
        url = f"http://127.0.0.1:{port}/predict"
        yield Target(name=name, url=dict.fromkeys(CONNECTIONS, url), processes=lambda: family([pid]))


def brinery_targets(stack: Stack) -> list[Target]:
    """Deploy the function with one slot (the default) and with 32, and find its workers' own addresses.

    A worker with one slot refuses a second request at the same time (the gateway holds it back), so that only
    one with 32 slots can be called by 32 connections directly.
    """
    for name, concurrency in (("describe", 1), ("describe-32", 32)):
        brinery.endpoint(name=name, min_workers=1, concurrency=concurrency)(describe).deploy()
        stack.wait_for_workers(name, 1)
    direct = {
        connections: f"{stack.route(name).workers[0].url}/predict"
        for connections, name in zip(CONNECTIONS, ("describe", "describe-32"), strict=True)
    }
    workers = [*stack.worker_processes("describe"), *stack.worker_processes("describe-32")]
    gateway = [
        Target(
            name=name,
            url=dict.fromkeys(CONNECTIONS, f"{stack.url}/v1/endpoints/{endpoint}/predict"),
            authorization=f"Bearer {stack.api_key}",
            processes=stack.processes,
        )
        for name, endpoint in ((GATEWAY, "describe"), (GATEWAY_32, "describe-32"))
    ]
    return [*gateway, Target(name=WORKER, url=direct, processes=lambda: workers)]


# ----------------------------------------------------------------------------------------------- measurements
def first_answer(target: Target) -> str:
    """Call a server once by each URL, check what the answer means, and return its exact text."""
    texts = set()
    for url in target.url.values():
        headers = {"Content-Type": "application/json", "Authorization": target.authorization}
        reply = httpx.post(url, content=BODY, headers={name: text for name, text in headers.items() if text})
        if reply.status_code != httpx.codes.OK or reply.json() != describe(**ARGUMENTS):
            raise BenchmarkError(f"{target.name} answered {reply.status_code}: {reply.text[:300]}")
        texts.add(reply.text)
    if len(texts) > 1:
        raise BenchmarkError(f"{target.name} answers the same call in several ways: {texts}")
    return texts.pop()


def idle_percent(targets: list[Target]) -> dict[str, float]:
    """Return how much of one core each server uses when nobody calls: it burdens the others' measurements."""
    time.sleep(SETTLE_SECONDS)
    before = [cpu_seconds(target.processes()) for target in targets]
    time.sleep(IDLE_SECONDS)
    after = [cpu_seconds(target.processes()) for target in targets]
    return {
        target.name: (end - start) / IDLE_SECONDS * 100
        for target, start, end in zip(targets, before, after, strict=True)
    }


def load(target: Target, connections: int, expected: str, *, seconds: int) -> dict[str, float]:
    """Load one server with wrk and return the figures of this run."""
    processes = target.processes()
    before = cpu_seconds(processes)
    done = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "-s", BENCH / "wrk.lua", target.url[connections]],
        check=True,
        capture_output=True,
        text=True,
        timeout=seconds + 30,
        env={
            **os.environ,
            "BENCH_BODY": BODY,
            "BENCH_EXPECTED": expected,
            "BENCH_AUTHORIZATION": target.authorization,
        },
    )
    cpu = cpu_seconds(processes) - before
    seen: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    bad = seen["not_2xx"] + seen["wrong"] + seen["socket_errors"] + seen["timeouts"]
    if bad or not seen["requests"]:
        print(f"{target.name}, {connections} connections: {seen}", flush=True)
    requests = max(1, seen["requests"])
    return {
        "requests_per_second": seen["requests"] / seen["duration_us"] * 1e6,
        "p50_ms": seen["p50_us"] / 1000,
        "p99_ms": seen["p99_us"] / 1000,
        "cpu_seconds": cpu,
        "cpu_ms_per_request": cpu * 1000 / requests,
        "bad": bad,
    }


# ----------------------------------------------------------------------------------------------------- report
def report(samples: dict[str, list[dict[str, float]]], idle: dict[str, float]) -> str:
    """Return the Markdown table, and the sentence on what the gateway adds."""
    header = (
        *("server", "connections", "requests/s", f"of {REFERENCE}'s", "p50 ms", "p99 ms"),
        *("CPU s", "CPU ms/request", "bad answers", "idle CPU %"),
    )
    rows = []
    for key, measured in samples.items():
        name, connections = key.split("|")
        middle = medians(measured)
        reference = samples[f"{REFERENCE}|{connections}"]
        ratio = statistics.median(
            ours["requests_per_second"] / theirs["requests_per_second"]
            for ours, theirs in zip(measured, reference, strict=True)
        )
        rows.append(
            (
                *(name, connections, f"{middle['requests_per_second']:,.0f}", f"{ratio:.2f}"),
                *(f"{middle['p50_ms']:.2f}", f"{middle['p99_ms']:.2f}", f"{middle['cpu_seconds']:.2f}"),
                *(f"{middle['cpu_ms_per_request']:.2f}", f"{sum(row['bad'] for row in measured):.0f}"),
                f"{idle[name]:.1f}",
            )
        )
    rows.sort(key=lambda row: int(row[1]))
    added = statistics.median(
        ours["p50_ms"] - direct["p50_ms"]
        for ours, direct in zip(samples[f"{GATEWAY}|1"], samples[f"{WORKER}|1"], strict=True)
    )
    return f"{table(header, rows)}\n\nThe gateway adds {added:.2f} ms to the p50 at 1 connection."
