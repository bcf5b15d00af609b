"""A real platform in a home and on a port of its own, and a user who writes scripts beside it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import httpx
import psutil

BRINERY = Path(sys.executable).with_name("brinery")

KIT = '''
"""What the acceptance tests call again and again: one of each form."""
import os
import time
from collections.abc import Iterator

from brinery import Bundle, endpoint


@endpoint(max_workers=2)
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    print("adding", a, "and", b)
    return a + b


@endpoint
class Counter:
    def load(self):
        self.base = 100

    def predict(self, x: int) -> int:
        return self.base + x


def load_model():
    return {"factor": 3}


def load_predict(model):
    def predict(x: int) -> int:
        return model["factor"] * x

    return predict


triple = Bundle(name="triple", load_model=load_model, load_predict=load_predict)


@endpoint
def countdown(start: int) -> Iterator[int]:
    while start:
        yield start
        start -= 1


@endpoint
def fail(text: str) -> None:
    raise LookupError(text)


@endpoint
def doze(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()
'''


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(true: Callable[[], Any], *, seconds: float = 30.0, what: str) -> Any:
    """Return the first true answer; fail when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (answer := true()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return answer


class Stack:
    """A platform in `folder`, and a user at work beside it."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.desk = folder / "desk"
        self.desk.mkdir(parents=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        others = {name: value for name, value in os.environ.items() if not name.startswith("BRINERY_")}
        # Processes are said outright: fast, and the same wherever the tests run. Tests of `auto` take it out again.
        self.environment = others | {
            "BRINERY_HOME": str(self.home),
            "BRINERY_PORT": str(self.port),
            "BRINERY_RUNTIME": "process",
        }

    def brinery(self, *arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a CLI command as a user does."""
        done = subprocess.run(
            [BRINERY, *arguments],
            cwd=self.desk,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        said = f"brinery {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == 0 or not check, said + self.last_words()
        return done

    def json(self, *arguments: str) -> Any:
        """Run a CLI command with ``--json`` and return what it printed."""
        return json.loads(self.brinery(*arguments, "--json").stdout)

    def run(self, code: str, *, check: bool = True) -> Any:
        """Run a user's script on the desk; return its last line as JSON, or all it said if it may fail."""
        script = self.desk / "script.py"
        script.write_text(dedent(code))
        command = [sys.executable, str(script)]
        done = subprocess.run(
            command, cwd=self.desk, env=self.environment, capture_output=True, text=True, timeout=180, check=False
        )
        if not check:
            return done
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.last_words()}"
        return json.loads(done.stdout.splitlines()[-1])

    def key(self) -> str:
        return str(json.loads((self.home / "profile.json").read_text())["api_key"])

    def http(self) -> httpx.Client:
        """Return a plain HTTP client with the admin's key."""
        headers = {"Authorization": f"Bearer {self.key()}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60.0, trust_env=False)

    def endpoint(self, name: str) -> dict[str, Any]:
        with self.http() as http:
            return dict(http.get(f"/v1/endpoints/{name}").raise_for_status().json())

    def environments(self) -> set[str]:
        """The environments that are built, and whatever lies beside them."""
        return {path.name for path in (self.home / "environments").iterdir()}

    def serves(self, endpoint_id: str) -> bool:
        """Whether anything runs for an endpoint."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(endpoint_id in part for part in process.cmdline()):
                    return True
        return False

    def processes(self) -> list[psutil.Process]:
        """Every process that works in this home, or names it on its command line or in its environment."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                named = [*process.cmdline(), process.cwd(), process.environ().get("BRINERY_HOME", "")]
                if process.pid != os.getpid() and any(str(self.home) in part for part in named):
                    found.append(process)
        return found

    def kill_everything(self) -> None:
        """``kill -9`` whatever runs here, until nothing does."""
        while victims := self.processes():
            for victim in victims:
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
            psutil.wait_procs(victims, timeout=5)

    def last_words(self) -> str:
        logs = sorted(self.home.glob("**/*.log"), key=lambda path: path.stat().st_mtime)[-4:]
        return "\n".join(f"--- {log}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-20:]) for log in logs)
