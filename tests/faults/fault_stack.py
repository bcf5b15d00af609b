"""A real platform to break: its processes by kind, its Redis, and the endpoint whose executions are counted outside."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import redis

from brinery_platform.embedded_redis import embedded_url
from stack import Stack, wait_until

SOURCES_VARIABLE = "FAULT_SOURCES"
"""A folder with copies of the three packages, of which one is sabotaged; the platform then runs from there."""
FUNCTION = "work"
SLOTS = 4

CODE = f'''
"""One function that says outside of the platform when it begins and when it ends."""
import json
import os
import signal
import time

from brinery import current_request, endpoint


def note(log: str, what: str) -> None:
    request = current_request()
    line = {{"task": request.task_id, "attempt": request.attempt, "what": what, "at": time.time()}}
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, json.dumps(line).encode() + b"\\n")
        os.fsync(handle)
    finally:
        os.close(handle)


@endpoint(max_workers=1, concurrency={SLOTS}, max_attempts=3, timeout_seconds=60, expires_in_seconds=900)
def {FUNCTION}(seconds: float, log: str, size: int = 0, padding: str = "", die: bool = False) -> dict:
    note(log, "begun")
    if die:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(seconds)
    note(log, "ended")
    request = current_request()
    return {{"task": request.task_id, "attempt": request.attempt, "filling": "x" * size}}
'''


class FaultStack(Stack):
    """The platform in `folder`, with the endpoint deployed by `start`.

    Args:
        folder: Of everything: home, desk and the log of executions.
        environment: Variables for the platform, such as ``BRINERY_OBJECTS_URL``.
    """

    def __init__(self, folder: Path, **environment: str) -> None:
        super().__init__(folder)
        self.executions = folder / "executions.log"
        self.executions.touch()
        self.environment |= environment
        self.sources = Path(os.environ[SOURCES_VARIABLE]) if SOURCES_VARIABLE in os.environ else None
        if self.sources is not None:
            paths = [str(self.sources), *filter(None, [self.environment.get("PYTHONPATH")])]
            self.environment["PYTHONPATH"] = os.pathsep.join(paths)
            self.environment.pop("PYTHONDONTWRITEBYTECODE", None)  # its bytecode shows what was imported from there

    def start(self) -> None:
        """Bring it up, deploy the endpoint, and run one task so that a forwarder and a worker are there."""
        (self.desk / "counted.py").write_text(CODE)
        self.brinery("up", "--detach")
        self.brinery("deploy", "counted.py")
        self.endpoint_id = self.endpoint(FUNCTION)["id"]
        self.ready()
        if self.sources is not None:
            for part in ("gateway", "controller", "forwarder"):
                cached = self.sources / "brinery_platform" / part / "__pycache__"
                assert list(cached.glob("*.pyc")), f"the {part} was not imported from {self.sources}"

    def ready(self) -> None:
        """Wait until one call and one task have gone through."""
        body = {"seconds": 0, "log": str(self.executions.with_name("probes.log"))}
        with self.http() as http:

            def answers() -> bool:
                try:
                    return http.post(f"/v1/endpoints/{FUNCTION}/predict", json=body).status_code == 200
                except OSError:
                    return False

            wait_until(answers, seconds=60, what="the endpoint to answer a call")
            task = http.post(f"/v1/endpoints/{FUNCTION}/tasks", json=body).raise_for_status().json()
            task = http.get(f"/v1/tasks/{task['id']}", params={"wait_seconds": 30}).json()
            assert task["status"] == "succeeded", f"{task}\n{self.last_words()}"

    # ------------------------------------------------------------------------------------------------------ processes
    def running(self, kind: str) -> list[tuple[str, psutil.Process]]:
        """Return id and process of everything of a kind that the platform's own records name and that lives."""
        found = []
        for file in (self.home / "run" / "processes").glob("*.json"):
            try:
                record = json.loads(file.read_text())
                process = psutil.Process(record["identity"]["pid"])
                if record["running"]["kind"] == kind and process.status() != psutil.STATUS_ZOMBIE:
                    found.append((record["running"]["id"], process))
            except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
                continue
        return found

    def one(self, kind: str) -> psutil.Process:
        """Return the process of a kind, when there is one; ``redis`` is the embedded server."""
        if kind == "redis":
            return wait_until(self._redis_process, what="the embedded Redis")
        found = wait_until(lambda: self.running(kind), what=f"a {kind}")
        return found[0][1]

    def _redis_process(self) -> psutil.Process | None:
        config = str(self.home / "redis" / "redis.conf")
        return next((one for one in self.processes() if config in _command(one)), None)

    # ---------------------------------------------------------------------------------------------------------- Redis
    def redis(self) -> redis.Redis:
        """Return a client of the platform's Redis."""
        url = self.environment.get("BRINERY_REDIS_URL") or embedded_url(self.home)
        return redis.Redis.from_url(url, socket_timeout=5.0)

    def messages(self, client: redis.Redis) -> int:
        """Return how many messages are on the endpoint's queues."""
        names = [f"endpoint.{self.endpoint_id}"]
        names += [f"{names[0]}\x06\x16{step}" for step in range(1, 10)]
        return sum(int(client.llen(name)) for name in names)

    def leads(self, process: psutil.Process) -> bool:
        """Return whether this process is the controller that leads."""
        with self.redis() as client:
            holder = client.get("controller:lease")
        return holder is not None and f"|{process.pid}|" in holder.decode()


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def path_of(task_id: str) -> str:
    """Return the path of a task's own routes."""
    return f"/v1/tasks/{quote(task_id)}"


def executions(log: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what the functions wrote outside of the platform, by task; a torn last line is left out."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        found.setdefault(entry["task"], []).append(entry)
    return found
