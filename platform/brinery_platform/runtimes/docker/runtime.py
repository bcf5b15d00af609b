"""Workers as containers; the platform's own processes beside them, or as containers too (`PlatformContainers`).

A container is found by its labels, so that a restarted controller adopts what runs, and by its name, which the engine
gives to one only. Its log is copied to ``<home>/logs`` before it is removed.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from brinery.errors import ConflictError, DeploymentError
from brinery.spec import WORKER_PORT
from brinery_platform.runtimes import detached
from brinery_platform.runtimes.base import LogMark, PlatformSpec, Running, Runtime, Stamped, Usage, WorkerSpec
from brinery_platform.runtimes.docker import labels, sandbox
from brinery_platform.runtimes.docker.bundles import BundleImages, environment_image
from brinery_platform.runtimes.docker.ends import EndWatcher
from brinery_platform.runtimes.docker.engine import Engine, Facts
from brinery_platform.runtimes.docker.gate import Gate
from brinery_platform.runtimes.docker.lines import stamped_lines
from brinery_platform.runtimes.docker.network import WorkerNetwork, merged
from brinery_platform.runtimes.docker.platform_containers import KINDS, PlatformContainers
from brinery_platform.runtimes.docker.runnable import STOP_SECONDS, RunnableImages
from brinery_platform.runtimes.docker.usage import usage_of
from brinery_platform.runtimes.docker.volumes import Volumes
from brinery_platform.runtimes.process import THREAD_VARIABLES, Interpreters, ProcessRuntime

if TYPE_CHECKING:
    from brinery_platform.settings import Settings

STOP_AGAIN_SECONDS: Final = 1.0
"""The kernel drops a SIGTERM that reaches a container's first process before it listens for it, so it is repeated."""
STARTED: Final = frozenset({"worker", "platform"})
"""Kinds of containers that `Runtime.start` makes."""
ATTEMPTS: Final = 100
LOOK_AGAIN_SECONDS: Final = 0.05
"""A container's name is taken a moment before the engine shows it."""


def open_runtime(settings: Settings, environments: Interpreters) -> Runtime:
    """Return the runtime of the engine that ``DOCKER_HOST`` names, else of this machine's."""
    from brinery_platform.settings import platform_environment

    processes = ProcessRuntime(settings.home, environments, platform_environment(settings))
    engine = Engine()
    platform = PlatformContainers(engine, settings, platform_environment(settings)) if settings.platform_image else None
    network = WorkerNetwork(engine, detached.home_mark(settings.home), settings.worker_network)
    return DockerRuntime(
        settings.home,
        environments,
        engine=engine,
        network=network,
        processes=processes,
        platform=platform,
        host_folders=settings.host_folders,
    )


class DockerRuntime(Runtime):
    """Runs workers in containers of a Docker engine.

    Args:
        home: The platform's home.
        environments: What knows which environments are built, and the worker's own code.
        engine: The engine; closed with this.
        network: What the workers are connected to.
        processes: What runs the platform's own processes; closed with this.
        platform: What makes containers of some of these.
        host_folders: See `RunnableImages`.
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
        platform: PlatformContainers | None = None,
        host_folders: Sequence[str] = (),
        on_exit: Callable[[str], None] | None = None,
    ) -> None:
        self.on_exit = on_exit
        self._environments = environments
        self._engine = engine
        self._network = network
        self._gate = Gate(home, network)
        self._processes = processes
        self._platform = platform
        self._processes.on_exit = self._tell
        self._mark = detached.home_mark(home)
        self._logs = home / "logs"
        for kind in ("workers", "platform"):
            (self._logs / kind).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._bundles = BundleImages(engine, self._mark, home / "run" / "bundle-images.lock")
        volumes = Volumes(engine, self._mark, home / "run" / "volumes.lock")
        self._images = RunnableImages(engine, self._mark, volumes, host_folders)
        self._mine: set[str] = set()
        self._whose = {labels.HOME: self._mark, labels.RUNNING: ""}
        self._watcher = EndWatcher(engine, self._whose, self._tell, self._running_ids)

    def close(self) -> None:
        """Let go of everything; what runs goes on."""
        self._watcher.close()
        self._processes.close()
        self._engine.close()

    # ----------------------------------------------------------------------------------------------- the contract
    def start(self, spec: WorkerSpec | PlatformSpec) -> Running:
        """See `Runtime.start`."""
        if isinstance(spec, PlatformSpec) and (self._platform is None or spec.kind not in KINDS):
            return self._processes.start(spec)
        epoch = self._watcher.epoch()
        self._mine.add(spec.id)  # before it runs: another thread that lists would remove what ends at once
        running = self._start(spec)
        if running.url or isinstance(spec, PlatformSpec):
            self._watcher.note_alive(spec.id, epoch=epoch)
        return running

    def poll(self, running_id: str) -> int | None:
        """See `Runtime.poll`."""
        if self._watcher.is_alive(running_id):
            return None
        if not self._contained(running_id):
            return self._processes.poll(running_id)
        epoch = self._watcher.epoch()
        facts = self._engine.inspect(self._name(running_id))
        if facts is None:  # a process, perhaps of the time before this home had containers, or nothing
            return self._processes.poll(running_id)
        if not facts["State"]["Running"]:
            return _exit_code(facts)
        self._watcher.note_alive(running_id, epoch=epoch)
        return None

    def why(self, running_id: str) -> str:
        """See `Runtime.why`."""
        facts = self._engine.inspect(self._name(running_id)) if self._contained(running_id) else None
        if facts is None or facts["State"]["Running"]:
            return super().why(running_id)
        if facts["State"]["OOMKilled"] and _exit_code(facts) == -signal.SIGKILL and facts["HostConfig"]["Memory"]:
            return f"killed: out of memory at {facts['HostConfig']['Memory'] // 2**20} MiB"
        if facts["State"]["Error"]:
            return str(facts["State"]["Error"])
        return super().why(running_id)

    def stop(self, running_id: str, *, grace_seconds: float) -> None:
        """See `Runtime.stop`."""
        if self._contained(running_id):
            self._stop(running_id, grace_seconds)
        self._processes.stop(running_id, grace_seconds=grace_seconds)

    def list(self) -> list[Running]:
        """See `Runtime.list`."""
        found = []
        for facts in self._ours(ended_too=True):
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
        stamped = self._container_log(running_id, tail=tail, follow=follow, since=since)
        if stamped is None:
            yield from self._processes.logs(running_id, tail=tail, follow=follow, since=since)
            return
        with closing(stamped) as lines:
            for _, line in lines:
                yield line

    def stamped(self, running_id: str, *, tail: int, follow: bool, since: LogMark | None = None) -> Stamped:
        """See `Runtime.stamped`; who asks to go on with the log of a container that is removed hears no more."""
        lines = self._container_log(running_id, tail=tail, follow=follow, since=since)
        if lines is not None:
            return lines
        if follow and since is not None:
            return Stamped(iter(()))
        return self._processes.stamped(running_id, tail=tail, follow=follow, since=since)

    def usage(self, running_ids: Sequence[str]) -> dict[str, Usage]:
        """See `Runtime.usage`."""
        return usage_of(self._engine, {one: self._name(one) for one in running_ids if _is_worker(one)})

    def outdated(self, running_id: str) -> bool:
        """See `Runtime.outdated`; what is a process although there is an image for it is outdated too."""
        wanted = self._platform.image_id() if self._platform is not None else ""
        facts = self._engine.inspect(self._name(running_id)) if wanted else None
        return bool(wanted) and (facts is None or facts["Image"] != wanted)

    def egress_proxy(self) -> PlatformSpec:
        """See `Runtime.egress_proxy`."""
        return self._gate.spec()

    # --------------------------------------------------------------------------------------------------- starting
    def _start(self, spec: WorkerSpec | PlatformSpec) -> Running:
        name = self._name(spec.id)
        config: Facts | None = None
        for _ in range(ATTEMPTS):
            facts = self._engine.inspect(name)
            if facts is not None and facts["State"]["Status"] not in {"running", "created"}:
                self._discard(spec.id)  # it ran under this id before
                facts = None
            if facts is None:
                config = config or self._described(spec)
                try:
                    self._engine.create(name, config)
                except ConflictError:  # another runtime of this home starts it at this moment
                    time.sleep(LOOK_AGAIN_SECONDS)
                    continue
            try:
                if facts is None or facts["State"]["Status"] == "created":
                    self._begin(name, spec)
            except DeploymentError:  # it has no such device, say
                self._engine.remove(name)
                raise
            started = self._engine.inspect(name)
            if started is not None:
                return _running(started["Config"]["Labels"], started["NetworkSettings"])
        raise DeploymentError(f"{spec.id} is removed by something else while it is started.", id=spec.id)

    def _described(self, spec: WorkerSpec | PlatformSpec) -> Facts:
        """Return the body of the call that creates a container."""
        if isinstance(spec, WorkerSpec):
            return self._config(spec)
        return self._of_platform.config(spec, {labels.HOME: self._mark})

    def _begin(self, name: str, spec: WorkerSpec | PlatformSpec) -> None:
        if isinstance(spec, WorkerSpec):
            self._engine.start(name)
        else:
            self._of_platform.begin(name, spec)

    @property
    def _of_platform(self) -> PlatformContainers:
        if self._platform is None:
            raise RuntimeError("only `start` asks for it, which has looked")
        return self._platform

    def _config(self, spec: WorkerSpec) -> Facts:
        """Return the body of the call that creates a worker's container."""
        if spec.image is None and self._engine.image(environment_image(spec.environment_id)) is None:
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
            ready_route=spec.image.ready_route if spec.image else "",
        )
        marked = {
            labels.HOME: self._mark,
            labels.KIND: "worker",
            labels.ID: spec.id,
            labels.RUNNING: json.dumps(dataclasses.asdict(running)),
            labels.ENVIRONMENT: spec.environment_id,
        }
        if spec.image is not None:
            config = self._images.config(spec, spec.image)
            config["Labels"] = marked | {labels.PORT: str(spec.image.port)}
        else:
            config = self._worker_config(spec) | {"Labels": marked}
        return merged(config, self._networking(spec))

    def _worker_config(self, spec: WorkerSpec) -> Facts:
        """Return the body that creates the container of a bundle's worker, but for labels and network."""
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
            "HostConfig": sandbox.limits(memory_mib=spec.memory_mib, cpus=spec.cpus, gpus=spec.gpus, read_only=True),
        }

    def _networking(self, spec: WorkerSpec) -> Facts:
        """Return the parts of a container's configuration that say what it reaches; for `merged`."""
        if isinstance(spec.egress, str):
            return self._network.joined(internal=spec.egress != "on")
        self._gate.open(self)
        return self._network.joined(internal=True) | {"Env": self._gate.variables(spec.endpoint_id, spec.egress)}

    # --------------------------------------------------------------------------------------------------- stopping
    def _stop(self, running_id: str, grace_seconds: float) -> None:
        name = self._name(running_id)
        facts = self._engine.inspect(name)
        if facts is not None and labels.PORT in facts["Config"]["Labels"]:
            grace_seconds = min(grace_seconds, STOP_SECONDS)
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
        kept = self._logs / ("workers" if _is_worker(running_id) else "platform") / f"{running_id}.log"
        kept.touch(0o600)
        with kept.open("ab") as log:
            fcntl.flock(log, fcntl.LOCK_EX)  # others may do the same at this moment
            if self._engine.inspect(name) is not None:
                for piece in self._engine.logs(name, tail=-1, follow=False):
                    log.write(piece)
                log.flush()  # whoever asks from here on reads the file
            self._engine.remove(name)

    # ---------------------------------------------------------------------------------------------------- knowing
    def _container_log(self, running_id: str, *, tail: int, follow: bool, since: LogMark | None) -> Stamped | None:
        """Return what the engine has of a log; None where that is kept in a file, as before a container is removed."""
        if not self._contained(running_id):
            return None
        at = since.at if since else None
        stream = self._engine.logs(self._name(running_id), tail=tail, follow=follow, since=at, stamped=True)
        return None if stream.missing else Stamped(stamped_lines(stream), stream.end, stream.close)

    def _running_ids(self) -> set[str]:
        return {facts["Labels"][labels.ID] for facts in self._ours()}

    def _ours(self, *, ended_too: bool = False) -> Sequence[Facts]:
        """Return what `start` made; a container that prepares a volume may carry these labels from a user's image."""
        found = self._engine.containers(self._whose, ended_too=ended_too)
        return [facts for facts in found if facts["Labels"].get(labels.KIND) in STARTED]

    def _tell(self, running_id: str) -> None:
        if self.on_exit is not None:
            self.on_exit(running_id)

    def _contained(self, running_id: str) -> bool:
        """Whether it may be a container; the engine is asked for no builder of a home without such containers."""
        return _is_worker(running_id) or self._platform is not None or running_id in self._mine

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
    urls = {"url": f"http://{address}:{marked.get(labels.PORT, WORKER_PORT)}"}
    if labels.PORT not in marked:
        urls["control_url"] = f"http://{address}:{sandbox.CONTROL_PORT}"
    return Running(**fields | (urls if address else {}))


def _exit_code(facts: Facts) -> int:
    """Return an ended container's exit code; what the engine says of a signal's end, as a negative number."""
    code = int(facts["State"]["ExitCode"])
    return 128 - code if 128 < code <= 128 + 64 else code
