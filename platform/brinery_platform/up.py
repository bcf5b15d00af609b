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
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import redis
import urllib3

from brinery.config import read_profile, write_profile
from brinery.errors import BrineryError, ConflictError, InvalidRequestError, UnavailableError
from brinery_platform.database import migrate
from brinery_platform.embedded_redis import EmbeddedRedis
from brinery_platform.runtimes.base import PlatformSpec, Running
from brinery_platform.services import Services, connect
from brinery_platform.settings import Settings
from brinery_platform.store import hash_key
from brinery_platform.up_record import UpRecord

ADMIN: Final = "admin"
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
        self._say = say
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
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, lambda _signal, _frame: self._stop.set())
            try:
                self._prepare()
                self._supervise()
            finally:
                self._shut_down()
            self._say("Brinery is down")

    # ------------------------------------------------------------------------------------------------------- prepare
    def _prepare(self) -> None:
        settings = self.settings
        started_at = time.time()
        UpRecord(os.getpid(), settings.url, started_at, ready=False).write(settings.home)
        self._services = connect(settings)
        self._stop_leftovers()
        _check_port(settings)
        if not settings.redis_url.get_secret_value():
            self._say("Starting the embedded Redis")
            self._redis = EmbeddedRedis(settings.home)
            self._redis.start()
        _check_redis(self._services)
        _check_objects(self._services)
        migrate(settings.database)
        self._ensure_admin_key()
        for name in ("controller", "gateway"):
            self._start(name)
        self._say("Waiting for the gateway")
        if not self._wait_ready():
            return
        UpRecord(os.getpid(), settings.url, started_at, ready=True).write(settings.home)
        self._say(f"Brinery is up at {settings.url}")
        self._say(self._services.runtime.notice)

    def _stop_leftovers(self) -> None:
        """End gateway and controller of an `up` that was killed: they may have other settings. Workers go on."""
        for name, grace_seconds in (("gateway", GATEWAY_GRACE_SECONDS), ("controller", GRACE_SECONDS)):
            if any(running.id == name for running in self._parts.runtime.list()):
                self._say(f"Stopping the {name} that a killed `brinery up` has left")
                self._parts.runtime.stop(name, grace_seconds=grace_seconds)

    def _ensure_admin_key(self) -> None:
        """Have a live admin key in the user's profile; a start that died before writing it makes another."""
        services = self._parts
        known = {key.sha256 for key in services.store.live_keys() if key.admin}
        profile = read_profile(self.settings.home)
        text = profile.api_key if profile is not None else None
        if text is None or hash_key(text) not in known:
            _, text = services.store.create_key(ADMIN, "made by brinery up", admin=True)
            self._say(f"Wrote an admin key to {self.settings.home / 'profile.json'}")
        write_profile(self.settings.home, self.settings.url, text)

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
                self._redis.start()
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
    runtime = services.runtime
    order: list[tuple[str, float]] = [
        ("gateway", GATEWAY_GRACE_SECONDS),
        ("controller", GRACE_SECONDS),
        ("builder", 1.0),
        ("forwarder", GRACE_SECONDS),
        ("worker", WORKER_GRACE_SECONDS),
    ]
    with ThreadPoolExecutor(max_workers=16) as pool:
        for kind, grace_seconds in order:
            found = [running for running in runtime.list() if running.kind == kind]
            if found:
                say(f"Stopping {_count(found, kind)}")
            ends = [pool.submit(runtime.stop, running.id, grace_seconds=grace_seconds) for running in found]
            for end in ends:
                end.result()
    runtime.close()


def _count(found: list[Running], kind: str) -> str:
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


def _check_redis(services: Services) -> None:
    try:
        services.redis.ping()
    except ValueError:
        raise InvalidRequestError(
            "BRINERY_REDIS_URL is no Redis URL; write redis://[:password@]host:port/database, rediss://… or unix://…"
        ) from None
    except redis.RedisError as error:
        raise UnavailableError(
            f"BRINERY_REDIS_URL: the Redis there does not answer ({error}); start it, or unset the variable to use "
            "the embedded one."
        ) from None


def _check_objects(services: Services) -> None:
    try:
        services.objects.exists("probe")
    except BrineryError as error:
        raise InvalidRequestError(f"BRINERY_OBJECTS_URL: {error.message}") from None
