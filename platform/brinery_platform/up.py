"""All of it on one machine: `prepare` what is missing, `run` the processes, `shut_down` everything again.

What runs is found through the runtime (pid, start time and the home's mark), so a new `up` after a `kill -9` of the
old one adopts it instead of doubling it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import urllib3

from brinery.config import write_profile
from brinery.errors import BrineryError, ConflictError, UnavailableError
from brinery_platform.embedded_redis import EmbeddedRedis
from brinery_platform.preparation import ensure_admin_key, prepare
from brinery_platform.runtimes.base import PlatformSpec, Running, Runtime
from brinery_platform.runtimes.choice import Choice
from brinery_platform.services import Services, connect
from brinery_platform.settings import Settings
from brinery_platform.up_record import UpRecord

READY_SECONDS: Final = 60.0
GATEWAY_GRACE_SECONDS: Final = 35.0
GRACE_SECONDS: Final = 30.0
WORKER_GRACE_SECONDS: Final = 60.0
"""By then gateway and forwarders have let their requests finish; this is for the user's `unload`."""
MAX_BACK_OFF_SECONDS: Final = 30.0
LOCK_SECONDS: Final = 1.0
"""Who only looks whether an `up` runs holds the lock for a moment."""

Say = Callable[[str], None]


class Up:
    """One `brinery up`, from the first folder to the last process.

    Args:
        settings: This platform's settings.
        say: Takes lines for a person.
    """

    def __init__(self, settings: Settings, say: Say) -> None:
        self.settings = settings
        self._tell = say
        self._stop = threading.Event()
        self._services: Services | None = None
        self._redis: EmbeddedRedis | None = None
        self._failures: dict[str, int] = {}
        self._retry_at: dict[str, float] = {}

    def run(self) -> None:
        """Bring everything up, keep it up, and take it down on SIGTERM or SIGINT.

        Raises:
            ConflictError: Another `up` runs in this home, or the port is taken.
            InvalidRequestError: A setting is wrong, with its name.
            UnavailableError: Something that a setting names does not answer.
        """
        home = self.settings.home
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        (home / "run").mkdir(exist_ok=True, mode=0o700)
        with _lock(home):
            try:
                UpRecord(os.getpid(), self.settings.url, time.time(), ready=False).write(home)
                _on_signals(lambda: sys.exit(0))  # what the choice waits for must not keep anybody waiting
                self._choose_runtime()
                _on_signals(self._stop.set)
                self._prepare()
                self._supervise()
            finally:
                self._shut_down()
            self._say("Brinery is down")

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):  # a full disk takes no line either
            self._tell(line)

    # -------------------------------------------------------------------------------------------------------- choose
    def _choose_runtime(self) -> None:
        """Settle what runs the workers, once for everything that is started here."""
        settings, before = self.settings, Choice.read(self.settings.home)
        if settings.runtime == "auto":
            choice = self._try_containers()
            if choice.runtime == "docker":
                self._say(f"Workers run as containers {choice.why}")
            else:
                self._say(f"Workers run as processes, for containers cannot be used here: {choice.why}")
        else:
            choice = Choice(settings.runtime, "as BRINERY_RUNTIME says")
            if choice.runtime == "docker":
                _check_engine()
        self.settings = settings.model_copy(update={"runtime": choice.runtime})
        if before is not None and before.runtime != choice.runtime:
            self._say(f"Until now this home's workers ran as {_form(before)}; they start anew as {_form(choice)}")
            # What a killed `up` has left: nobody would find its workers, and the rest knows the other runtime only.
            stop_everything(connect(settings.model_copy(update={"runtime": before.runtime})), self._say)
        choice.write(settings.home)

    def _try_containers(self) -> Choice:
        from brinery_platform.runtimes.auto import choose, trial_engine

        engine = trial_engine()
        try:
            return choose(engine, self.settings, self._base)
        finally:
            engine.close()

    def _base(self) -> str:
        """Return the id of a base image for the trial, made where there is none, and tell how that goes."""
        from brinery_platform.environments import PLATFORM_PYTHON
        from brinery_platform.images.environments import open_environments
        from brinery_platform.runtimes.auto import trial_engine
        from brinery_platform.settings import index_environment

        environments = open_environments(self.settings, index_environment(), engine=trial_engine())
        try:
            return environments.base(PLATFORM_PYTHON, self._say).id
        finally:
            environments.close()

    # ------------------------------------------------------------------------------------------------------- prepare
    def _prepare(self) -> None:
        settings = self.settings
        started_at = time.time()
        self._services = connect(settings)
        self._stop_leftovers()
        _check_port(settings)
        if not settings.redis_url.get_secret_value():
            self._say("Starting the embedded Redis")
            self._redis = EmbeddedRedis(settings.home)
            self._redis.start()
        prepare(self._services, self._say)
        write_profile(settings.home, settings.url, ensure_admin_key(self._services, self._say))
        for name in ("controller", "gateway"):
            self._start(name)
        self._say("Waiting for the gateway")
        if not self._wait_ready():
            return
        UpRecord(os.getpid(), settings.url, started_at, ready=True).write(settings.home)
        self._say(f"Brinery is up at {settings.url}")
        self._say(self._services.runtime.notice)

    def _stop_leftovers(self) -> None:
        """End what an `up` that was killed has left and what may have other settings. Workers go on."""
        order = (("gateway", GATEWAY_GRACE_SECONDS), ("controller", GRACE_SECONDS), ("egress", 1.0))
        for name, grace_seconds in order:
            if any(running.id == name for running in self._parts.runtime.list()):
                self._say(f"Stopping the {name} that a killed `brinery up` has left")
                self._parts.runtime.stop(name, grace_seconds=grace_seconds)

    def _wait_ready(self) -> bool:
        """Return whether the gateway is ready; False when the user has stopped waiting."""
        deadline = time.monotonic() + READY_SECONDS
        while not self._stop.wait(0.05):
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                if urllib3.request("GET", f"{self.settings.url}/readyz", timeout=2.0, retries=False).status == 200:
                    return True
            for name in ("gateway", "controller"):
                code = self._parts.runtime.poll(name)
                if code is not None:
                    raise UnavailableError(f"The {name} ended with exit code {code}. {self._last_words(name)}")
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"The gateway was not ready after {READY_SECONDS:g} s. {self._last_words('gateway')}"
                )
        return False

    def _last_words(self, name: str) -> str:
        return " ".join(list(self._parts.runtime.logs(name, tail=3)))

    # ----------------------------------------------------------------------------------------------------- supervise
    def _supervise(self) -> None:
        """Start again, with back-off, what ends by itself."""
        while not self._stop.wait(0.2):
            if self._redis is not None and not self._redis.running():
                self._say("The embedded Redis ended; starting it again")
                try:
                    self._redis.start()
                except (BrineryError, OSError) as error:  # such as a full disk, where room may be made
                    self._say(f"The embedded Redis cannot be started: {error}")
                    self._stop.wait(1.0)
                    continue
            for name in ("controller", "gateway"):
                code = self._parts.runtime.poll(name)
                if code is None:
                    continue
                if name not in self._retry_at:
                    count = self._failures[name] = self._failures.get(name, 0) + 1
                    delay = 0.0 if count == 1 else min(2.0 ** (count - 2), MAX_BACK_OFF_SECONDS)
                    self._retry_at[name] = time.monotonic() + delay
                    self._say(f"The {name} ended with exit code {code}; starting it again in {delay:g} s")
                if time.monotonic() >= self._retry_at[name]:
                    del self._retry_at[name]
                    self._parts.runtime.stop(name, grace_seconds=0.0)
                    self._start(name)

    def _start(self, name: str) -> None:
        kind: Literal["controller", "gateway"] = "controller" if name == "controller" else "gateway"
        self._parts.runtime.start(PlatformSpec(id=name, kind=kind, module=f"brinery_platform.{name}"))

    @property
    def _parts(self) -> Services:
        if self._services is None:
            raise RuntimeError("prepare comes first")
        return self._services

    # ----------------------------------------------------------------------------------------------------- shut down
    def _shut_down(self) -> None:
        """End the callers' side first, then what serves them: requests finish, queued tasks stay queued."""
        if self._services is not None:
            stop_everything(self._services, self._say)
        if self._redis is not None:
            self._redis.stop()
        (self.settings.home / "run" / "up.json").unlink(missing_ok=True)


def stop_everything(services: Services, say: Say) -> None:
    """Stop every process of this home but Redis: gateway, controller, forwarders and builders, workers."""
    runtime = answering_runtime(services, say)
    order: list[tuple[str, float]] = [
        ("gateway", GATEWAY_GRACE_SECONDS),
        ("controller", GRACE_SECONDS),
        ("builder", 1.0),
        ("forwarder", GRACE_SECONDS),
        ("worker", WORKER_GRACE_SECONDS),
        ("egress", 1.0),
    ]
    for kind, grace_seconds in order:
        _stop_all(runtime, kind, grace_seconds, say)
    runtime.close()


def answering_runtime(services: Services, say: Say) -> Runtime:
    """Return the runtime of some services; where its engine does not answer, that of the processes beside it."""
    runtime = services.runtime
    try:
        runtime.list()
    except UnavailableError as error:
        say(f"{error.message.partition(';')[0]}: containers of this home are left as they are")
        runtime.close()
        return connect(services.settings.model_copy(update={"runtime": "process"})).runtime
    return runtime


def _stop_all(runtime: Runtime, kind: str, grace_seconds: float, say: Say) -> None:
    found = [running for running in runtime.list() if running.kind == kind]
    if found:
        say(f"Stopping {_count(found, kind)}")
    with ThreadPoolExecutor(max_workers=16) as pool:
        for end in [pool.submit(runtime.stop, running.id, grace_seconds=grace_seconds) for running in found]:
            end.result()


def _count(found: list[Running], kind: str) -> str:
    if kind == "egress":
        return "the egress proxy"
    return f"the {kind}" if kind in {"gateway", "controller"} else f"{len(found)} {kind}{'s' * (len(found) > 1)}"


@contextmanager
def _lock(home: Path) -> Iterator[None]:
    with (home / "run" / "up.lock").open("ab") as file:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ConflictError(f"Another `brinery up` runs in {home}.") from None
                time.sleep(0.02)
        yield


def _on_signals(do: Callable[[], object]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda _signal, _frame: do())


def _form(choice: Choice) -> str:
    return "containers" if choice.runtime == "docker" else "processes"


def _check_engine() -> None:
    """Fail, with what to do, where the runtime that was asked for has no engine."""
    from brinery_platform.runtimes.auto import trial_engine

    engine = trial_engine()
    try:
        engine.version()
    finally:
        engine.close()


def _check_port(settings: Settings) -> None:
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise ConflictError(
                f"Port {settings.port} on {settings.host} cannot be used ({error.strerror}); choose another with "
                "--port or BRINERY_PORT."
            ) from None
