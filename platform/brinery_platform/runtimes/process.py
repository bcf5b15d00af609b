"""Workers and the platform's own processes as plain processes of this machine.

This runtime does not isolate: a worker runs as the platform's user and can read what that user can read. It keeps the
platform's secrets out of a worker's environment, which protects from accidents and not from malice; whoever may
deploy here is trusted with this machine's account.

What runs is known twice: by a record in ``<home>/run/processes``, and by the process's own environment. A controller
that was killed between starting a process and writing its record thus loses nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from brinery.errors import DeploymentError
from brinery_platform.runtimes import detached, logfiles, sessions
from brinery_platform.runtimes.base import NO_EGRESS, LogMark, PlatformSpec, Running, Runtime, Usage, WorkerSpec
from brinery_platform.runtimes.detached import Identity
from brinery_platform.runtimes.exits import ExitWatcher

if TYPE_CHECKING:
    from brinery_platform.settings import Settings

RUNNING_VARIABLE: Final = "BRINERY_RUNNING"
"""JSON of `Running` in the environment of what was started."""
BACKLOG: Final = 1024
FORGET_LOGS_SECONDS: Final = 60.0

PASSED_ON: Final = frozenset(
    {
        "CUDA_VISIBLE_DEVICES",
        "CURL_CA_BUNDLE",
        "LANG",
        "LC_ALL",
        "LD_LIBRARY_PATH",
        "NVIDIA_VISIBLE_DEVICES",
        "REQUESTS_CA_BUNDLE",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TZ",
    }
)
"""What of the platform's environment a worker sees: where it is and whom to trust, no names and no secrets."""
THREAD_VARIABLES: Final = ("MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Interpreters(Protocol):
    """What this runtime asks of `environments.Environments`, which stands a floor above it."""

    def path(self, environment_id: str) -> Path:
        """Return the folder of an environment; its interpreter is ``bin/python``."""

    def is_ready(self, environment_id: str) -> bool:
        """Return whether an environment can be used."""

    def worker_runtime_path(self) -> Path:
        """Return the folder that holds the worker's own packages."""


@dataclass(frozen=True)
class _Record:
    """What is known of one process: `running` for the controller, `identity` to find it, `child` to reap it."""

    running: Running
    identity: Identity
    child: subprocess.Popen[bytes] | None = None


def open_runtime(settings: Settings, environments: Interpreters) -> Runtime:
    """Return the runtime of this machine's processes."""
    from brinery_platform.settings import platform_environment

    return ProcessRuntime(settings.home, environments, platform_environment(settings))


class ProcessRuntime(Runtime):
    """Runs everything as processes of this machine; they outlive the runtime and are adopted by the next one.

    Args:
        home: The platform's home.
        environments: Where the workers' interpreters are.
        platform_env: Whole environment of platform processes, ``BRINERY_*`` and secrets included. Of it, workers get
            only `PASSED_ON`.
        on_exit: See `Runtime.on_exit`.
    """

    notice = (
        "Workers run as plain processes: they are not isolated from one another or from this account; "
        "deploy only code that you trust."
    )

    def __init__(
        self,
        home: Path,
        environments: Interpreters,
        platform_env: Mapping[str, str],
        on_exit: Callable[[str], None] | None = None,
    ) -> None:
        self.on_exit = on_exit
        self._environments = environments
        self._platform_env = dict(platform_env)
        self._mark = detached.home_mark(home)
        self._records_folder = home / "run" / "processes"
        self._scratch_folder = home / "scratch"
        self._logs_folder = home / "logs"
        for folder in (self._records_folder, self._scratch_folder, self._logs_folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._known: dict[str, _Record] = {}
        self._exit_codes: dict[str, int] = {}
        self._lock = threading.RLock()
        self._depth = 0
        self._lock_file = os.open(self._records_folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._logs_forgotten_at = 0.0
        self._watcher = ExitWatcher(self._notice_exit, self._keep_house)

    def close(self) -> None:
        """Let go of everything; what runs goes on."""
        self._watcher.close()
        with self._lock:
            for record in self._known.values():
                if record.child is not None:
                    detached.let_go(record.child)
            self._known.clear()
            if self._lock_file >= 0:
                os.close(self._lock_file)
                self._lock_file = -1

    # ----------------------------------------------------------------------------------------------- the contract
    def start(self, spec: WorkerSpec | PlatformSpec) -> Running:
        """See `Runtime.start`."""
        with self._exclusive():
            self._refresh()
            if spec.id in self._known:
                return self._known[spec.id].running
            self._exit_codes.pop(spec.id, None)
            try:
                return self._start_worker(spec) if isinstance(spec, WorkerSpec) else self._start_platform(spec)
            except (OSError, ValueError) as error:  # ValueError: a variable that no environment can hold
                raise DeploymentError(
                    f"{spec.kind} {spec.id} cannot be started on this machine: {error}.", id=spec.id
                ) from error

    def poll(self, running_id: str) -> int | None:
        """See `Runtime.poll`."""
        with self._lock:
            record = self._find(running_id)
            if record is not None:
                if detached.is_alive(record.identity):
                    return None
                self._settle(running_id)
            return self._exit_codes.get(running_id, 0)

    def stop(self, running_id: str, *, grace_seconds: float) -> None:
        """See `Runtime.stop`."""
        with self._lock:
            record = self._find(running_id)
        if record is not None:  # outside the lock: others go on while it drains
            detached.end(record.identity, grace_seconds=grace_seconds)
        with self._exclusive():
            self._refresh()
            self._exit_codes.pop(running_id, None)
            if running_id not in self._known:  # else another runtime of this home has just started it again
                detached.kill_leftovers(self._mark_of(running_id), session=None)

    def list(self) -> list[Running]:
        """See `Runtime.list`."""
        with self._exclusive():
            self._refresh()
            return sorted((record.running for record in self._known.values()), key=lambda one: one.started_at)

    def logs(
        self, running_id: str, *, tail: int = 200, follow: bool = False, since: LogMark | None = None
    ) -> Iterator[str]:
        """See `Runtime.logs`."""
        return logfiles.read(
            self._log(running_id), tail=tail, follow=follow, running=lambda: self.poll(running_id) is None, since=since
        )

    def usage(self, running_ids: Sequence[str]) -> dict[str, Usage]:
        """See `Runtime.usage`."""
        with self._lock:
            records = {one: self._known.get(one) for one in running_ids}
        leaders = {one: record.identity.pid for one, record in records.items() if record is not None}
        used = sessions.usage_of(leaders.values())
        return {one: used[pid] for one, pid in leaders.items() if pid in used}

    # --------------------------------------------------------------------------------------------------- starting
    def _start_worker(self, spec: WorkerSpec) -> Running:
        if spec.egress != "on":
            raise DeploymentError(NO_EGRESS, id=spec.id)
        if not self._environments.is_ready(spec.environment_id):
            raise DeploymentError(
                f"Environment {spec.environment_id} is not built on this machine; deploy the endpoint again.",
                id=spec.id,
                environment_id=spec.environment_id,
            )
        interpreter = self._environments.path(spec.environment_id) / "bin" / "python"
        # Bound and listening here: the address is known before the worker runs, and nobody else can take the port.
        with _listen() as serving, _listen() as control:
            running = Running(
                id=spec.id,
                kind=spec.kind,
                endpoint_id=spec.endpoint_id,
                version=spec.version,
                url=f"http://127.0.0.1:{serving.getsockname()[1]}",
                control_url=f"http://127.0.0.1:{control.getsockname()[1]}",
                started_at=time.time(),
            )
            options: dict[str, object] = {
                "--bundle": spec.bundle,
                "--sha256": spec.sha256,
                "--listen-fd": serving.fileno(),
                "--control-fd": control.fileno(),
                "--host": "127.0.0.1",
                "--concurrency": spec.concurrency,
                "--drain-seconds": spec.drain_seconds,
            }
            command = [str(interpreter), "-m", "brinery_worker"]
            command += [str(part) for option in options.items() for part in option]
            scratch = self._make_scratch(spec.id)
            return self._spawn(
                running,
                command,
                environment=self._worker_environment(spec, interpreter.parent, scratch),
                folder=scratch,
                pass_fds=(serving.fileno(), control.fileno()),
            )

    def _start_platform(self, spec: PlatformSpec) -> Running:
        running = Running(id=spec.id, kind=spec.kind, endpoint_id=spec.endpoint_id, started_at=time.time())
        return self._spawn(
            running,
            [sys.executable, "-m", spec.module, *spec.arguments],
            environment={**self._platform_env, "PYTHONUNBUFFERED": "1"},
            folder=self._make_scratch(spec.id),
        )

    def _worker_environment(self, spec: WorkerSpec, bin_folder: Path, scratch: Path) -> dict[str, str]:
        threads = str(max(1, math.ceil(spec.cpus)))
        path = [str(self._environments.worker_runtime_path())]
        if "PYTHONPATH" in spec.env:
            path.append(spec.env["PYTHONPATH"])
        return {
            **{name: self._platform_env[name] for name in PASSED_ON & self._platform_env.keys()},
            **dict.fromkeys(THREAD_VARIABLES, threads),
            "HOME": str(scratch),
            "PATH": f"{bin_folder}:/usr/local/bin:/usr/bin:/bin",
            "TMPDIR": str(scratch / "tmp"),
            **spec.env,
            "PYTHONPATH": ":".join(path),
            "PYTHONUNBUFFERED": "1",
        }

    def _spawn(
        self,
        running: Running,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        pass_fds: tuple[int, ...] = (),
    ) -> Running:
        marked = {
            **environment,
            detached.MARK_VARIABLE: self._mark_of(running.id),
            RUNNING_VARIABLE: json.dumps(dataclasses.asdict(running)),
        }
        child = detached.spawn(command, environment=marked, folder=folder, log=self._log(running.id), pass_fds=pass_fds)
        state = detached.state_of(child.pid)
        if state is None:  # a child that nobody has waited for is always there
            raise DeploymentError(f"{running.kind} {running.id} vanished while it was started.", id=running.id)
        self._remember(_Record(running, state.identity, child))
        return running

    def _make_scratch(self, running_id: str) -> Path:
        scratch = self._scratch_folder / running_id
        (scratch / "tmp").mkdir(mode=0o700, parents=True, exist_ok=True)
        return scratch

    # ------------------------------------------------------------------------------------- knowing what there is
    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Keep out other threads, and other controllers of the same home.

        A started process holds the file's lock until it runs its own program, so that nobody can look for it in
        the moment between, in which it does not carry its mark yet.
        """
        with self._lock:
            if not self._depth:
                fcntl.flock(self._lock_file, fcntl.LOCK_EX)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if not self._depth:
                    fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    def _find(self, running_id: str) -> _Record | None:
        if running_id not in self._known and running_id not in self._exit_codes:
            with self._exclusive():
                self._refresh()
        return self._known.get(running_id)

    def _refresh(self) -> None:
        """Make `_known` exactly what runs: adopt what others started, settle what has ended."""
        for running_id, record in tuple(self._known.items()):
            if not detached.is_alive(record.identity):
                self._settle(running_id)
        found: dict[str, _Record] = {}
        for file in self._records_folder.glob("*.json"):
            if file.stem not in self._known and (written := self._read_record(file)) is not None:
                found[file.stem] = written
        identities = {record.identity for record in self._known.values()}
        for identity, environment in detached.find_marked(f"{self._mark}/", known=identities):
            running = _parse_running(environment.get(RUNNING_VARIABLE, ""))
            # The oldest is the process itself; younger ones with its mark are what it started.
            if running is not None and running.id not in self._known:
                found.setdefault(running.id, _Record(running, identity))
        for running_id, record in found.items():
            if detached.is_alive(record.identity):
                self._remember(record)
            else:
                self._settle(running_id)

    def _remember(self, record: _Record) -> None:
        """Write the record and watch the process."""
        running_id = record.running.id
        self._known[running_id] = record
        content = {
            "mark": self._mark,
            "identity": dataclasses.asdict(record.identity),
            "running": dataclasses.asdict(record.running),
        }
        target = self._record_file(running_id)
        partial = target.with_suffix(".partial")
        partial.write_text(json.dumps(content))
        partial.replace(target)
        self._watcher.watch(running_id, detached.open_pidfd(record.identity))

    def _read_record(self, file: Path) -> _Record | None:
        try:
            content = json.loads(file.read_text())
            record = _Record(Running(**content["running"]), Identity(**content["identity"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            file.unlink(missing_ok=True)  # damaged; its process is still found by its mark
            return None
        if content.get("mark") == self._mark:
            return record
        file.unlink(missing_ok=True)  # this home is a copy of another one, which keeps its processes
        return None

    # ------------------------------------------------------------------------------------------------- afterwards
    def _settle(self, running_id: str) -> None:
        """Kill what an ended process left behind, keep its exit code, and forget the rest of it."""
        with self._exclusive():
            record = self._known.get(running_id)
            if record is not None and detached.is_alive(record.identity):
                return
            written = self._read_record(self._record_file(running_id))
            # Another runtime of this home may have tidied up already, and even have started the same id again.
            if written is not None and not detached.is_alive(written.identity):
                # Of what ended while nobody watched, the session's id may be another's by now; its mark is enough.
                session = record.identity.pid if record is not None and not _reused(record.identity) else None
                detached.kill_leftovers(self._mark_of(running_id), session=session)
                self._record_file(running_id).unlink(missing_ok=True)
                shutil.rmtree(self._scratch_folder / running_id, ignore_errors=True)
            if record is not None:
                del self._known[running_id]
                if record.child is not None:  # the exit code of somebody else's child is not for us to know
                    self._exit_codes[running_id] = record.child.poll() or 0

    def _notice_exit(self, running_id: str) -> None:
        self._settle(running_id)
        if self.on_exit is not None:
            self.on_exit(running_id)

    def _keep_house(self) -> None:
        with self._lock:
            running = set(self._known)
        for running_id in running:
            if logfiles.is_large(self._log(running_id)):
                with self._exclusive():
                    logfiles.rotate(self._log(running_id))
        if time.monotonic() - self._logs_forgotten_at > FORGET_LOGS_SECONDS:
            self._logs_forgotten_at = time.monotonic()
            recorded = {file.stem for file in self._records_folder.glob("*.json")}
            logfiles.forget_old(self._logs_folder / "workers", running=recorded)

    def _mark_of(self, running_id: str) -> str:
        return f"{self._mark}/{running_id}"

    def _record_file(self, running_id: str) -> Path:
        return self._records_folder / f"{running_id}.json"

    def _log(self, running_id: str) -> Path:
        folder = "workers" if running_id.startswith("wrk_") else "platform"
        return self._logs_folder / folder / f"{running_id}.log"


def _listen() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)


def _reused(identity: Identity) -> bool:
    state = detached.state_of(identity.pid)
    return state is not None and state.identity != identity


def _parse_running(text: str) -> Running | None:
    try:
        fields: dict[str, Any] = json.loads(text)
        return Running(**fields)
    except (ValueError, TypeError):
        return None
