"""Containers beside what they are made of: `docker run` of a worker's own image, and a worker that is a process."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import urllib3
from brinery_stack import Stack, running_stack
from harness import BenchmarkError, keep, percentile, table, wait_until
from raw_http import Connection, connections
from workload import ARGUMENTS, describe

import brinery
from brinery.errors import UnavailableError
from brinery.spec import WORKER_PORT
from brinery_platform.runtimes.detached import home_mark
from brinery_platform.runtimes.docker import labels
from brinery_platform.runtimes.docker.engine import Engine, Facts

CHANGING: Final = "changing"
NAPPING: Final = "napping"
WARM: Final = "warm"
REQUIREMENTS: Final = ["orjson"]
"""Really installed, so that an environment stands behind the endpoint; the first deployment builds it."""
START_SECONDS: Final = 60.0
BATCH: Final = 100
"""Requests to one platform before it is the other one's turn."""
BATCHES: Final = 10
AIMS: Final = {"change": (1.5, 1.0), "cold": (1.3, 0.0)}
"""At most so many times `docker run`, and so many seconds more."""
WARM_AIM_MS: Final = 0.3


def version(number: int) -> Callable[[], int]:
    """Return the function as it is after `number` changes."""

    def answer() -> int:
        return number

    return answer


def run(*, rounds: int) -> None:
    """Measure the three figures, the compared ones in turn, and keep them.

    Args:
        rounds: Changes, starts from zero and `docker run`; warm requests come in `BATCHES` batches for each platform.

    Raises:
        BenchmarkError: No Docker engine answers, or something wrong came back.
    """
    engine = Engine()
    try:
        engine.version()
    except UnavailableError as error:
        raise BenchmarkError(error.message) from None
    with _forgotten(engine) as marks, running_stack({"BRINERY_RUNTIME": "docker"}) as boxed:
        marks.append(home_mark(boxed.home))
        samples = starts(engine, boxed, rounds)
        warm = warm_calls(boxed)
    engine.close()
    keep("containers", {"starts": samples, "warm_ms": warm}, report(samples, warm))


@contextmanager
def _forgotten(engine: Engine) -> Iterator[list[str]]:
    """Remove what homes with these marks have left in the engine: images, but for the base, and networks."""
    marks: list[str] = []
    try:
        yield marks
    finally:
        for mark in marks:
            for kind in ("bundle", "environment"):
                for image in engine.images({labels.HOME: mark, labels.KIND: kind}):
                    engine.remove_image(image["Id"])
            for network in engine.networks({labels.HOME: mark}):
                engine.remove_network(network["Id"])


# ------------------------------------------------------------------------------------------------------- starts
def starts(engine: Engine, stack: Stack, rounds: int) -> list[dict[str, float]]:
    """Return the seconds of each round: a change, a cold request, and `docker run` of both their images."""
    brinery.endpoint(name=CHANGING, requirements=REQUIREMENTS)(version(0)).deploy()
    napping = brinery.endpoint(name=NAPPING, requirements=REQUIREMENTS, idle_seconds=0.5)(describe)
    napping.deploy()
    napping.remote(**ARGUMENTS)
    napper = _newest(engine, stack, NAPPING)
    samples = []
    for number in range(1, rounds + 1):
        change = _change(number)
        change_run = docker_run(engine, _newest(engine, stack, CHANGING))
        wait_until(lambda: not _workers(engine, stack, NAPPING), f"{NAPPING} is at zero", timeout_seconds=START_SECONDS)
        began = time.monotonic()
        napping.remote(**ARGUMENTS)
        cold = time.monotonic() - began
        samples.append(
            {"change": change, "change_run": change_run, "cold": cold, "cold_run": docker_run(engine, napper)}
        )
        print(f"round {number}: {samples[-1]}", flush=True)
    return samples


def _change(number: int) -> float:
    """Deploy a changed function, and return the seconds until its first new answer."""
    function = brinery.endpoint(name=CHANGING, requirements=REQUIREMENTS)(version(number))
    began = time.monotonic()
    function.deploy()
    while (answer := function.remote()) != number:
        if time.monotonic() - began > START_SECONDS:
            raise BenchmarkError(f"Change {number} is deployed, but version {answer} still answers.")
    return time.monotonic() - began


def docker_run(engine: Engine, worker: Facts) -> float:
    """Return the seconds from `docker run` of a worker's image, with its own command, to ``/readyz``."""
    name = f"brinery-bench-{uuid.uuid4().hex[:8]}"
    config = worker["Config"]
    program, *arguments = config["Entrypoint"]
    command = ["docker", "run", "--detach", "--name", name, "--network", worker["HostConfig"]["NetworkMode"]]
    command += ["--user", config["User"], "--workdir", "/tmp"]  # noqa: S108 - the container's own
    command += [part for variable in config["Env"] for part in ("--env", variable)]
    command += ["--entrypoint", program, config["Image"], *arguments]
    began = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS, check=False)
        if done.returncode:
            raise BenchmarkError(f"`docker run` failed: {done.stderr}")
        facts = engine.inspect(name)
        networks = facts["NetworkSettings"]["Networks"].values() if facts else ()
        address = next(iter(networks))["IPAddress"]
        wait_until(lambda: _is_ready(address), f"{name} is ready", timeout_seconds=START_SECONDS)
        return time.monotonic() - began
    finally:
        engine.remove(name)


def _is_ready(address: str) -> bool:
    try:
        url = f"http://{address}:{WORKER_PORT}/readyz"
        return urllib3.request("GET", url, timeout=1.0, retries=False).status == 200
    except urllib3.exceptions.HTTPError:
        return False


def _workers(engine: Engine, stack: Stack, endpoint: str) -> list[Facts]:
    """Return an endpoint's containers, newest first, those that are ending included."""
    endpoint_id = stack.route(endpoint).id
    found = engine.containers({labels.HOME: home_mark(stack.home), labels.KIND: "worker"}, ended_too=True)
    own = [facts for facts in found if json.loads(facts["Labels"][labels.RUNNING])["endpoint_id"] == endpoint_id]
    return sorted(own, key=lambda facts: -facts["Created"])


def _newest(engine: Engine, stack: Stack, endpoint: str) -> Facts:
    """Return everything about the container that serves an endpoint's newest version."""
    facts = engine.inspect(_workers(engine, stack, endpoint)[0]["Id"])
    if facts is None:
        raise BenchmarkError(f"The worker of {endpoint} is gone.")
    return facts


# --------------------------------------------------------------------------------------------------------- warm
def warm_calls(boxed: Stack) -> dict[str, list[float]]:
    """Return the milliseconds of warm calls to a worker in a container and to one that is a process, in turn."""
    brinery.endpoint(name=WARM, min_workers=1)(describe).deploy()
    with running_stack({"BRINERY_RUNTIME": "process"}) as plain:
        brinery.endpoint(name=WARM, min_workers=1)(describe).deploy()
        return asyncio.run(_in_turn({"docker": boxed, "process": plain}))


async def _in_turn(stacks: dict[str, Stack]) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {name: [] for name in stacks}
    for _ in range(BATCHES):
        for name, stack in stacks.items():
            async with connections(stack.url, stack.api_key, 1) as (connection,):
                await _batch(connection)  # the first requests of a connection are slower
                taken[name] += await _batch(connection)
    return taken


async def _batch(connection: Connection) -> list[float]:
    body = json.dumps(ARGUMENTS).encode()
    milliseconds = []
    for _ in range(BATCH):
        began = time.perf_counter()
        status, answer = await connection.request("POST", f"/v1/endpoints/{WARM}/predict", body)
        milliseconds.append((time.perf_counter() - began) * 1000)
        if (status, answer) != (200, describe(**ARGUMENTS)):
            raise BenchmarkError(f"A warm call came back as {status}: {answer}")
    return milliseconds


# ------------------------------------------------------------------------------------------------------- report
def report(samples: list[dict[str, float]], warm: dict[str, list[float]]) -> str:
    """Return the Markdown tables."""
    rows = []
    for name, label in (("change", "changed function to its first answer"), ("cold", "cold request at zero")):
        taken, beside = ([sample[key] for sample in samples] for key in (name, f"{name}_run"))
        times, more = AIMS[name]
        p50, run_p50 = statistics.median(taken), statistics.median(beside)
        aim = f"{times:g} x{f' + {more:g} s' if more else ''} = {times * run_p50 + more:.2f}"
        rows.append((label, f"{p50:.2f}", f"{max(taken):.2f}", f"{run_p50:.2f}", f"{p50 / run_p50:.2f}", aim))
    header = ("from", "p50 s", "slowest s", "`docker run` p50 s", "ratio", "at most")
    calls = [
        (label, *(f"{percentile(warm[name], percent):.2f}" for percent in (50, 95)))
        for name, label in (("process", "a process"), ("docker", "a container"))
    ]
    more_ms = percentile(warm["docker"], 50) - percentile(warm["process"], 50)
    summary = f"The container adds {more_ms:.2f} ms to the p50 of a warm call; at most {WARM_AIM_MS:g} is the aim."
    return f"{table(header, rows)}\n\n{table(('a warm call to', 'p50 ms', 'p95 ms'), calls)}\n\n{summary}"
