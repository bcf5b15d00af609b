"""Brinery itself as a benchmark sees it: ``brinery up`` in a temporary home, read from outside."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from harness import BenchmarkError, end, family, free_port, scratch_folder, wait_until
from redis import Redis

from brinery.config import read_config
from brinery_platform.embedded_redis import embedded_url
from brinery_platform.routes import ROUTING, EndpointRoute

ROLES: Final = (
    ("Redis", re.compile(r"valkey|redis-server")),
    ("worker", re.compile(r"brinery_worker")),
    ("gateway", re.compile(r"brinery_platform\.gateway|uvicorn")),
    ("controller", re.compile(r"brinery_platform\.controller")),
    ("forwarder", re.compile(r"brinery_platform\.forwarder")),
    ("builder", re.compile(r"brinery_platform\.(builder|environments)|celery")),
    ("`up`", re.compile(r"brinery.* up\b|brinery_platform\.up")),
)
BRINERY: Final = Path(sys.executable).with_name("brinery")


@dataclass(frozen=True)
class Stack:
    """A running platform.

    Args:
        home: Its ``BRINERY_HOME``.
        url: The gateway's base URL.
        api_key: The admin's key.
    """

    home: Path
    url: str
    api_key: str

    def processes(self) -> list[psutil.Process]:
        """Return every live process of the platform, workers and the embedded Redis included.

        They are found by the home in their command line or environment, as workers outlive what started them.
        """
        marked = [process.pid for process in psutil.process_iter() if self._is_marked(process)]
        own = {process.pid for process in family([os.getpid()])}
        return [process for process in family(marked) if process.pid not in own]

    def redis(self) -> Redis:
        """Return a client of the embedded Redis."""
        return Redis.from_url(embedded_url(self.home))

    def role(self, name: str) -> list[psutil.Process]:
        """Return the live processes of one role, see `role_of`."""
        return [process for process in self.processes() if role_of(process) == name]

    def route(self, endpoint: str) -> EndpointRoute:
        """Return an endpoint's entry in the routing table, as gateway and forwarder see it."""
        with self.redis() as redis:
            routes = [EndpointRoute.loads(raw) for raw in redis.hgetall(ROUTING).values()]
        return next(route for route in routes if route.spec.name == endpoint)

    def worker_processes(self, endpoint: str) -> list[psutil.Process]:
        """Return the processes of an endpoint's workers: supervisors and what they started."""
        workers = self.route(endpoint).workers
        ports = {int(worker.control_url.rsplit(":", 1)[1]) for worker in workers}
        listeners = {
            connection.pid
            for connection in psutil.net_connections("tcp4")
            if connection.status == psutil.CONN_LISTEN
            and connection.pid
            and getattr(connection.laddr, "port", 0) in ports
        }
        if len(listeners) < len(workers):
            raise BenchmarkError(f"The processes of {endpoint}'s workers cannot be found.")
        return family(listeners)

    def wait_for_workers(self, endpoint: str, count: int) -> None:
        """Wait until an endpoint has exactly `count` ready workers."""
        wait_until(
            lambda: len(self.route(endpoint).workers) == count,
            f"{endpoint} has {count} workers",
            timeout_seconds=90,
        )

    def _is_marked(self, process: psutil.Process) -> bool:
        mark = str(self.home)
        with suppress(psutil.Error, OSError):
            if any(mark in argument for argument in process.cmdline()):
                return True
            return any(mark in value for value in process.environ().values())
        return False


@contextmanager
def running_stack(settings: Mapping[str, str] | None = None) -> Iterator[Stack]:
    """Run the whole platform with its default settings, in a home of its own, for the length of a block.

    Workers are processes, also where an engine would run containers: these are measured apart.

    The SDK in this process is pointed at it.

    Args:
        settings: Environment variables that are not to have their defaults.

    Raises:
        BenchmarkError: It did not start, or left a process behind.
    """
    with scratch_folder() as folder:
        home, port = folder / "home", free_port()
        for name in [name for name in os.environ if name.startswith("BRINERY_")]:
            del os.environ[name]  # default settings are measured, and the user's own platform is left alone
        os.environ["BRINERY_HOME"] = str(home)  # where the SDK in this process finds URL and key
        os.environ.update({"BRINERY_RUNTIME": "process", **(settings or {})})
        stack = None
        try:
            _brinery("up", "--detach", "--home", str(home), "--port", str(port))
            profile = read_config()
            stack = Stack(home=home, url=profile.url, api_key=profile.api_key)
            yield stack
        finally:
            _brinery("down", "--home", str(home))
            if stack is not None:
                _, left = psutil.wait_procs(stack.processes(), timeout=5)
                if names := [" ".join(process.cmdline())[:120] for process in left if _alive(process)]:
                    end(left)
                    raise BenchmarkError(f"`brinery down` left processes behind: {names}")


def role_of(process: psutil.Process) -> str:
    """Return which part of the platform a process is, by its command line; ``other`` for one that has ended."""
    with suppress(psutil.NoSuchProcess):
        command = " ".join(process.cmdline())
        return next((name for name, pattern in ROLES if pattern.search(command)), "other")
    return "other"


def _alive(process: psutil.Process) -> bool:
    """Tell a running process from one that has ended and that only nobody has reaped."""
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def _brinery(*arguments: str) -> None:
    done = subprocess.run(
        [BRINERY, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise BenchmarkError(f"`brinery {' '.join(arguments)}` failed:\n{done.stdout}{done.stderr}")
