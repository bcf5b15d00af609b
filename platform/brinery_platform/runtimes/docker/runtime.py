"""Workers as containers; forwarders, builders, gateway and controller as processes beside them.

A container is found by its labels, so that a restarted controller adopts what runs, and by its name, which the engine
gives to one only. Its log is copied to ``<home>/logs/workers`` before it is removed.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from brinery.errors import ConflictError, DeploymentError
from brinery.spec import WORKER_PORT
from brinery_platform.runtimes import detached
from brinery_platform.runtimes.base import LogMark, PlatformSpec, Running, Runtime, WorkerSpec
from brinery_platform.runtimes.docker import labels, sandbox
from brinery_platform.runtimes.docker.bundles import BundleImages, environment_image
from brinery_platform.runtimes.docker.ends import EndWatcher
from brinery_platform.runtimes.docker.engine import Engine, Facts
from brinery_platform.runtimes.docker.network import WorkerNetwork
from brinery_platform.runtimes.process import THREAD_VARIABLES, Interpreters, ProcessRuntime

if TYPE_CHECKING:
    from brinery_platform.settings import Settings

STOP_AGAIN_SECONDS: Final = 1.0
"""The kernel drops a SIGTERM that reaches a container's first process before it listens for it, so it is repeated."""
ATTEMPTS: Final = 3


def open_runtime(settings: Settings, environments: Interpreters) -> Runtime:
    """Return the runtime of the engine that ``DOCKER_HOST`` names, else of this machine's."""
    from brinery_platform.settings import platform_environment

    processes = ProcessRuntime(settings.home, environments, platform_environment(settings))
    engine = Engine()
    network = WorkerNetwork(engine, detached.home_mark(settings.home), settings.worker_network)
    return DockerRuntime(settings.home, environments, engine=engine, network=network, processes=processes)


class DockerRuntime(Runtime):
    """Runs workers in containers of a Docker engine.

    Args:
        home: The platform's home.
        environments: What knows which environments are built, and the worker's own code.
        engine: The engine; closed with this.
        network: What the workers are connected to.
        processes: What runs the platform's own processes; closed with this.
        on_exit: See `Runtime.on_exit`.
    """

    notice = "Workers run as containers: apart from one another, from this account and from its files."

    def __init__(
        self,
        home: Path,
        environments: Interpreters,
        *,
        engine: Engine,
        network: WorkerNetwork,
        processes: ProcessRuntime,
        on_exit: Callable[[str], None] | None = None,
    ) -> None:
        self.on_exit = on_exit
        self._environments = environments
        self._engine = engine
        self._network = network
        self._processes = processes
        self._processes.on_exit = self._tell
        self._mark = detached.home_mark(home)
        self._logs = home / "logs" / "workers"
        self._logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._bundles = BundleImages(engine, self._mark, home / "run" / "bundle-images.lock")
        self._mine: set[str] = set()
        self._whose = {labels.HOME: self._mark, labels.KIND: "worker"}
        self._watcher = EndWatcher(engine, self._whose, self._tell, self._running_ids)

    def close(self) -> None:
        """Let go of everything; what runs goes on."""
        self._watcher.close()
        self._processes.close()
        self._engine.close()

    # ----------------------------------------------------------------------------------------------- the contract
    def start(self, spec: WorkerSpec | PlatformSpec) -> Running:
        """See `Runtime.start`."""
        if isinstance(spec, PlatformSpec):
            return self._processes.start(spec)
        epoch = self._watcher.epoch()
        running = self._start(spec)
        self._mine.add(spec.id)
        if running.url:
            self._watcher.note_alive(spec.id, epoch=epoch)
        return running

    def poll(self, running_id: str) -> int | None:
        """See `Runtime.poll`."""
        if self._watcher.is_alive(running_id):
            return None
        if not _is_worker(running_id):
            return self._processes.poll(running_id)
        epoch = self._watcher.epoch()
        facts = self._engine.inspect(self._name(running_id))
        if facts is None:  # a process of the time before this home had containers, or nothing
            return self._processes.poll(running_id)
        if not facts["State"]["Running"]:
            return _exit_code(facts)
        self._watcher.note_alive(running_id, epoch=epoch)
        return None

    def why(self, running_id: str) -> str:
        """See `Runtime.why`."""
        facts = self._engine.inspect(self._name(running_id)) if _is_worker(running_id) else None
        if facts is None or facts["State"]["Running"]:
            return super().why(running_id)
        if facts["State"]["OOMKilled"] and _exit_code(facts) == -signal.SIGKILL:
            return f"killed: out of memory at {facts['HostConfig']['Memory'] // 2**20} MiB"
        if facts["State"]["Error"]:
            return str(facts["State"]["Error"])
        return super().why(running_id)

    def stop(self, running_id: str, *, grace_seconds: float) -> None:
        """See `Runtime.stop`."""
        if _is_worker(running_id):
            self._stop(running_id, grace_seconds)
        self._processes.stop(running_id, grace_seconds=grace_seconds)

    def list(self) -> list[Running]:
        """See `Runtime.list`."""
        found = []
        for facts in self._engine.containers(self._whose, ended_too=True):
            running = _running(facts["Labels"], facts["NetworkSettings"])
            if facts["State"] in {"running", "paused"}:
                self._mine.add(running.id)
                found.append(running)
            elif self.on_exit is not None and running.id not in self._mine:
                # It ended while nobody watched. Only who is told of ends clears up: it cannot be asked for any more.
                self._discard(running.id)
        return sorted([*found, *self._processes.list()], key=lambda one: one.started_at)

    def logs(
        self, running_id: str, *, tail: int = 200, follow: bool = False, since: LogMark | None = None
    ) -> Iterator[str]:
        """See `Runtime.logs`; of a container that is removed, `since` cannot be told any more."""
        if _is_worker(running_id) and self._engine.inspect(self._name(running_id)) is not None:
            at = since.at if since else None
            return _lines(self._engine.logs(self._name(running_id), tail=tail, follow=follow, since=at))
        return self._processes.logs(running_id, tail=tail, follow=follow, since=since)

    # --------------------------------------------------------------------------------------------------- starting
    def _start(self, spec: WorkerSpec) -> Running:
        name = self._name(spec.id)
        config: Facts | None = None
        for _ in range(ATTEMPTS):
            facts = self._engine.inspect(name)
            if facts is not None and facts["State"]["Status"] not in {"running", "created"}:
                self._discard(spec.id)  # it ran under this id before
                facts = None
            if facts is None:
                config = config or self._config(spec)
                try:
                    self._engine.create(name, config)
                except ConflictError:  # another runtime of this home starts it at this moment
                    continue
            try:
                self._engine.start(name)
            except DeploymentError:  # it has no such device, say
                self._engine.remove(name)
                raise
            started = self._engine.inspect(name)
            if started is not None:
                return _running(started["Config"]["Labels"], started["NetworkSettings"])
        raise DeploymentError(f"Worker {spec.id} is removed by something else while it is started.", id=spec.id)

    def _config(self, spec: WorkerSpec) -> Facts:
        """Return the body of the call that creates a worker's container."""
        if self._engine.image(environment_image(spec.environment_id)) is None:
            raise DeploymentError(
                f"Environment {spec.environment_id} is not built on this machine; deploy the endpoint again.",
                id=spec.id,
                environment_id=spec.environment_id,
            )
        wrong = [name for name, value in spec.env.items() if "\0" in name + value or "=" in name or not name]
        if wrong:
            raise DeploymentError(
                f"Worker {spec.id} cannot be started: variable {wrong[0]!r} cannot exist.", id=spec.id
            )
        running = Running(
            id=spec.id,
            kind=spec.kind,
            endpoint_id=spec.endpoint_id,
            version=spec.version,
            started_at=time.time(),
        )
        network = self._network.ensure()
        image = self._bundles.ensure(
            spec.environment_id, spec.bundle, spec.sha256, self._environments.worker_runtime_path()
        )
        options: dict[str, object] = {
            "--bundle": sandbox.BUNDLE,
            "--sha256": spec.sha256,
            "--port": WORKER_PORT,
            "--control-port": sandbox.CONTROL_PORT,
            "--host": "0.0.0.0",  # noqa: S104 - of the container, whose network holds nobody else who could come
            "--concurrency": spec.concurrency,
            "--drain-seconds": spec.drain_seconds,
        }
        command = [f"{sandbox.ENVIRONMENT}/bin/python", "-m", "brinery_worker"]
        command += [str(part) for option in options.items() for part in option]
        return {
            "Image": image,
            "Entrypoint": command,
            "Env": [f"{name}={value}" for name, value in _environment(spec).items()],
            "User": f"{sandbox.WORKER}:{sandbox.WORKER}",
            "WorkingDir": sandbox.HOME,
            "Labels": self._whose
            | {
                labels.ID: spec.id,
                labels.RUNNING: json.dumps(dataclasses.asdict(running)),
                labels.ENVIRONMENT: spec.environment_id,
            },
            "HostConfig": sandbox.limits(memory_mib=spec.memory_mib, cpus=spec.cpus, gpus=spec.gpus, read_only=True)
            | {"NetworkMode": network},
        }

    # --------------------------------------------------------------------------------------------------- stopping
    def _stop(self, running_id: str, grace_seconds: float) -> None:
        name = self._name(running_id)
        deadline = time.monotonic() + grace_seconds
        while (left := deadline - time.monotonic()) > 0 and self._engine.kill(name, "SIGTERM"):
            if self._engine.wait(name, timeout_seconds=min(left, STOP_AGAIN_SECONDS)):
                break
        self._engine.kill(name, "SIGKILL")
        self._discard(running_id)
        self._mine.discard(running_id)

    def _discard(self, running_id: str) -> None:
        """Remove a container, and keep what it has said."""
        name = self._name(running_id)
        if self._engine.inspect(name) is None:
            return
        kept = self._logs / f"{running_id}.log"
        kept.touch(0o600)
        with kept.open("ab") as log:
            fcntl.flock(log, fcntl.LOCK_EX)  # others may do the same at this moment
            if self._engine.inspect(name) is not None:
                for piece in self._engine.logs(name, tail=-1, follow=False):
                    log.write(piece)
            self._engine.remove(name)

    # ---------------------------------------------------------------------------------------------------- knowing
    def _running_ids(self) -> set[str]:
        return {facts["Labels"][labels.ID] for facts in self._engine.containers(self._whose)}

    def _tell(self, running_id: str) -> None:
        if self.on_exit is not None:
            self.on_exit(running_id)

    def _name(self, running_id: str) -> str:
        return f"brinery-{self._mark}-{running_id}"


def _is_worker(running_id: str) -> bool:
    return running_id.startswith("wrk_")


def _environment(spec: WorkerSpec) -> dict[str, str]:
    path = [sandbox.WORKER_CODE]
    if "PYTHONPATH" in spec.env:
        path.append(spec.env["PYTHONPATH"])
    return {
        **dict.fromkeys(THREAD_VARIABLES, sandbox.threads(spec.cpus)),
        "HOME": sandbox.HOME,
        "PATH": f"{sandbox.ENVIRONMENT}/bin:/usr/local/bin:/usr/bin:/bin",
        "TMPDIR": "/tmp",  # noqa: S108 - the container's own
        **spec.env,
        "PYTHONPATH": ":".join(path),
        "PYTHONUNBUFFERED": "1",
    }


def _running(marked: dict[str, str], network: dict[str, Any]) -> Running:
    """Return what was started, from its container's labels and its place in the network; no URL if it has ended."""
    fields = json.loads(marked[labels.RUNNING])
    address = next((one["IPAddress"] for one in network["Networks"].values() if one["IPAddress"]), "")
    urls = {"url": f"http://{address}:{WORKER_PORT}", "control_url": f"http://{address}:{sandbox.CONTROL_PORT}"}
    return Running(**fields | (urls if address else {}))


def _exit_code(facts: Facts) -> int:
    """Return an ended container's exit code; what the engine says of a signal's end, as a negative number."""
    code = int(facts["State"]["ExitCode"])
    return 128 - code if 128 < code <= 128 + 64 else code


def _lines(pieces: Iterator[bytes]) -> Iterator[str]:
    rest = b""
    with closing(pieces):  # type: ignore[type-var]  # a generator, which has `close`
        for piece in pieces:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace").removesuffix("\r")
    if rest:
        yield rest.decode(errors="replace")
