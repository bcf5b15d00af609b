"""The process that builds environments: takes orders from the queue `builds`, and ends when none came for a while.

How a build goes is the hash ``build:<key>``: ``status`` (``building``, ``ready``, ``failed``), ``environment_id`` and
``lock`` or ``error``, and ``alive_at``, renewed while it runs. Whoever asked sees a builder's death by an old
``alive_at`` and asks again; an order that comes twice is harmless.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

import redis
import structlog
import tenacity

from brinery.errors import BrineryError, DeploymentError
from brinery.spec import BundleManifest, from_json
from brinery_platform import event_log
from brinery_platform.broker import BUILD, BUILDS
from brinery_platform.build_orders import build_key
from brinery_platform.logs import configure_logging
from brinery_platform.routes import WAKE
from brinery_platform.services import Services, connect
from brinery_platform.settings import read_settings

CONCURRENCY: Final = 2
HEARTBEAT_SECONDS: Final = 1.0
STALE_SECONDS: Final = 5.0
"""Without a heartbeat for so long, a build counts as dead and its order is carried out again."""
IDLE_SECONDS: Final = 120.0
MAX_STARTS: Final = 3
"""A build that so many builders died of is given up."""
REPORT_SECONDS: Final = 300.0
"""How long the outcome of a build waits for a Redis that is away."""
LINE_CHARACTERS: Final = 4000
LOG_BYTES: Final = 16 * 1024 * 1024

_log = structlog.get_logger(__name__)


class Builder:
    """Carries out orders and tells how they go.

    Args:
        services: The platform's parts.
    """

    def __init__(self, services: Services) -> None:
        self._environments = services.environments
        self._redis = services.redis
        self._logs = services.settings.home / "logs" / "builds"
        self._logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._busy = 0
        self._last_at = time.monotonic()

    def idle_seconds(self) -> float:
        """Return for how long nothing was built."""
        with self._lock:
            return 0.0 if self._busy else time.monotonic() - self._last_at

    def carry_out(self, key: str, manifest: dict[str, Any], lock: str | None, endpoint_id: str, version: int) -> None:
        """Build one environment; the outcome is in the hash afterwards, whatever happens short of our death.

        Args:
            key: See `environments.environment_key`.
            manifest: The bundle's manifest as JSON data.
            lock: Exact versions of an earlier build, or None to resolve the requirements.
            endpoint_id: Whose log shows the output.
            version: Of that endpoint.
        """
        with self._counted():
            if self._is_alive(key):
                return  # an order that came twice, and its build runs
            starts = self._redis.hincrby(build_key(key), "starts", 1)
            with self._heartbeat(key):
                try:
                    _refuse_deadly(starts)
                    with (self._logs / f"{key}.log").open("w") as file:
                        built = self._environments.build(
                            from_json(BundleManifest, manifest, what="manifest"),
                            lambda line: self._say(file, endpoint_id, version, line),
                            lock=lock,
                        )
                    outcome = {"status": "ready", "environment_id": built.environment_id, "lock": built.lock}
                except BrineryError as error:
                    outcome = {"status": "failed", "error": error.message}
                except Exception as error:  # noqa: BLE001 - whoever waits for this build must learn how it ended
                    _log.exception("build failed", key=key)
                    outcome = {"status": "failed", "error": f"The build failed: {type(error).__name__}: {error}."}
            self._report(key, outcome, endpoint_id)

    def _is_alive(self, key: str) -> bool:
        alive_at = self._redis.hget(build_key(key), "alive_at")
        return alive_at is not None and time.time() - float(alive_at) < STALE_SECONDS

    def _say(self, file: IO[str], endpoint_id: str, version: int, line: str) -> None:
        text = line[:LINE_CHARACTERS]
        if file.tell() < LOG_BYTES:
            file.write(text + "\n")
            file.flush()
        with contextlib.suppress(redis.RedisError):  # the file has it; a build goes on while Redis is away
            event_log.append(self._redis, endpoint_id, version=version, kind="build", text=text)

    def _report(self, key: str, outcome: Mapping[Any, str], endpoint_id: str) -> None:
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(redis.RedisError),
            wait=tenacity.wait_exponential(multiplier=0.1, max=5),
            stop=tenacity.stop_after_delay(REPORT_SECONDS),
            reraise=True,
        )
        for attempt in retrying:
            with attempt, self._redis.pipeline() as pipeline:
                pipeline.hset(build_key(key), mapping={**outcome})
                pipeline.hdel(build_key(key), "alive_at", "starts")
                pipeline.publish(WAKE, endpoint_id)
                pipeline.execute()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._busy += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1
                self._last_at = time.monotonic()

    @contextlib.contextmanager
    def _heartbeat(self, key: str) -> Iterator[None]:
        over = threading.Event()

        def beat() -> None:
            while True:
                with contextlib.suppress(redis.RedisError):
                    self._redis.hset(build_key(key), "alive_at", f"{time.time():.3f}")
                if over.wait(HEARTBEAT_SECONDS):
                    return

        thread = threading.Thread(target=beat, name="build-heartbeat")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _refuse_deadly(starts: int) -> None:
    if starts > MAX_STARTS:
        raise DeploymentError(
            f"The builder died {MAX_STARTS} times while it built this environment; it may need more memory or disk "
            "than this machine has."
        )


def end_when_idle(idle_seconds: Callable[[], float], *, limit_seconds: float = IDLE_SECONDS) -> None:
    """Ask this process to end, as SIGTERM does, once it has been idle for `limit_seconds`."""
    while (idle := idle_seconds()) < limit_seconds:
        time.sleep(min(1.0, limit_seconds - idle))
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Build until nothing has been ordered for `IDLE_SECONDS`, or until SIGTERM.

    Returns:
        The process's exit code.
    """
    settings = read_settings()
    configure_logging(settings.log_level)
    services = connect(settings)
    builder = Builder(services)
    app = services.celery
    app.task(builder.carry_out, name=BUILD, ignore_result=True)
    threading.Thread(target=end_when_idle, args=[builder.idle_seconds], name="idle-watch", daemon=True).start()
    worker = app.Worker(
        hostname=f"builder-{os.getpid()}@{Path('/proc/sys/kernel/hostname').read_text().strip()}",
        pool="threads",
        concurrency=CONCURRENCY,
        queues=[BUILDS],
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


if __name__ == "__main__":
    raise SystemExit(main())
