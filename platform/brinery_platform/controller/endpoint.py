"""One endpoint: what of it runs, and the next step from there to what is wanted.

`Endpoint.step` is called again and again. It never waits for anything: it starts what is missing, notes what ended,
and says which row of the routing table follows. What must end after that row has been published is ended by `settle`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from brinery.errors import BrineryError, UnavailableError
from brinery.spec import EndpointSpec, EndpointStatus
from brinery_platform import event_log, store
from brinery_platform.condemned import Condemned, End, Sentence
from brinery_platform.controller.builds import Builds
from brinery_platform.controller.forwarder import ForwarderKeeper
from brinery_platform.controller.health import Health
from brinery_platform.controller.leaving import STOP_MARGIN_SECONDS, Leaving
from brinery_platform.controller.load import Load
from brinery_platform.controller.policy import Decision, Signals, decide, surplus
from brinery_platform.controller.probe import Prober
from brinery_platform.controller.starting import worker_route, worker_spec
from brinery_platform.controller.worker import Failures, Worker, failure_text
from brinery_platform.routes import EndpointRoute
from brinery_platform.runtimes.base import Running
from brinery_platform.services import Services

MAX_START_FAILURES: Final = 3
"""Starts of a new version that may fail before its deployment has failed."""
SILENT_SECONDS: Final = 15.0
"""A ready worker whose supervisor has not answered for so long is replaced."""
RECENT_SECONDS: Final = 2.0
"""A request this long ago still counts as demand: loads are reported once a second."""


@dataclass
class Endpoint:
    """What the controller holds of one endpoint between two steps.

    Args:
        services: The platform's parts.
        forwarder: Its forwarder.
        builds: Environments and bundles on this machine.
        prober: The workers' health.
        stop: Ends something of the runtime in the background: its id, and a grace in seconds.
        id: ``end_…``.
    """

    services: Services
    forwarder: ForwarderKeeper
    builds: Builds
    prober: Prober
    stop: Callable[[str, float], None]
    id: str
    workers: dict[str, Worker] = field(default_factory=dict)
    failures: dict[int, Failures] = field(default_factory=dict)
    published: EndpointRoute | None = None
    _retiring: dict[str, None] = field(default_factory=dict)  # an ordered set
    _leaving: Leaving = field(init=False)
    _specs: dict[int, EndpointSpec] = field(default_factory=dict)
    _now_serving: int | None = None  # told when the routing table says so
    _surplus_since: float | None = None

    def __post_init__(self) -> None:
        self._leaving = Leaving(self.stop)
        self._condemned = Condemned(self.services.redis)

    # ------------------------------------------------------------------------------------------------------- steps
    def adopt(self, running: Running) -> None:
        """Take over what an earlier controller started."""
        if running.kind == "forwarder":
            self.forwarder.adopt(running)
        elif running.kind == "worker":
            self.prober.watch(running, ask_first=True)
            if self.prober.health(running.id).state == "stopping":
                self.prober.forget(running.id)
                self.stop(running.id, STOP_MARGIN_SECONDS + EndpointSpec.drain_seconds)
            else:
                self.workers[running.id] = Worker(running, started_at=time.monotonic())
        else:
            self.stop(running.id, 0.0)

    def step(self, row: store.Endpoint, load: Load) -> EndpointRoute:
        """Do what can be done now.

        Returns:
            The row of the routing table that is true after it.
        """
        now = time.monotonic()
        self._collect(load, now)
        self._leaving.look(load.workers, now)
        if row.wanted_version != row.serving_version:
            self._deploy(row, now)
        if row.serving_version:
            self._scale(row, load, now)
            self._judge(row)
        self._retire_other_versions(row)
        self.forwarder.keep(needed=bool(self.workers) or load.open > 0)
        return self._route(row)

    def settle(self) -> None:
        """Do what has to wait for the routing table: say what serves, and end the workers that it no longer names."""
        if self._now_serving is not None:
            self._log(self._now_serving, "status", f"Version {self._now_serving} is ready.")
            self._now_serving = None
        for worker_id in self._retiring:
            worker = self.workers.pop(worker_id, None)
            if worker is not None:
                self.prober.forget(worker_id)
                drain_seconds = self._spec_of(worker.running.version).drain_seconds
                self._leaving.add(worker, drain_seconds=drain_seconds, now=time.monotonic())
        self._retiring.clear()

    def dissolve(self, load: Load) -> bool:
        """End everything that runs for a deleted endpoint.

        Args:
            load: What is still at its workers.

        Returns:
            Whether nothing of it is left in the runtime.
        """
        self._retiring = dict.fromkeys(self.workers)
        self.settle()
        self._leaving.look(load.workers, time.monotonic())
        return self.forwarder.dissolve() and not any(
            running.endpoint_id == self.id for running in self.services.runtime.list()
        )

    # --------------------------------------------------------------------------------------------------- observing
    def _collect(self, load: Load, now: float) -> None:
        """Note which workers became ready, ended or failed since the last step."""
        for worker_id, sentence in load.condemned.items():
            self._replace(worker_id, sentence)
        for worker_id, worker in list(self.workers.items()):
            health = self.prober.health(worker_id)
            version = worker.running.version
            code = self.services.runtime.poll(worker_id)
            if code is not None:
                last = " ".join(list(self.services.runtime.logs(worker_id, tail=3)))
                why = self.services.runtime.why(worker_id)
                if not worker.supervised:
                    self._condemned.note_end(worker_id, End(reason=why))
                refused = worker.supervised and code == 3
                self._lost(worker_id, f"Worker {worker_id} ended: {why}. {last}".strip(), now, fatal=refused)
            elif health.state == "failed":
                self._lost(worker_id, failure_text(health.error), now, fatal=True)
            elif worker.ready and not health.serves:
                if health.state == "silent" and load.workers.get(worker_id):
                    worker.silent_since = None  # an image of one thread answers nobody else while it works
                    continue
                worker.silent_since = worker.silent_since or now
                if now - worker.silent_since > SILENT_SECONDS:
                    why = health.detail or health.state
                    self._lost(worker_id, f"Worker {worker_id} does not answer ({why}).", now, fatal=False)
            elif worker.ready:
                worker.silent_since = None
            elif health.serves:
                worker.ready = True
                self.failures.pop(version, None)
                self._log(version, "worker", f"Worker {worker_id} is ready.")
            else:
                self._wait(worker, health, now)

    def _wait(self, worker: Worker, health: Health, now: float) -> None:
        """Say why a worker is not ready, and give it up when its time is over."""
        worker_id, version = worker.running.id, worker.running.version
        limit = self._spec_of(version).startup_timeout_seconds
        if now - worker.started_at > limit:
            detail = f": {health.detail}" if health.detail else ""
            text = f"Worker {worker_id} was not ready after {limit:g} s{detail}."
            self._lost(worker_id, text, now, fatal=not worker.supervised)
        elif health.state == "loading" and health.detail and health.detail != worker.told:
            worker.told = health.detail
            self._log(version, "worker", f"Worker {worker_id} is not ready yet: {health.detail}.")

    def _replace(self, worker_id: str, sentence: Sentence) -> None:
        """End a worker at once for the sake of one of its calls; that is no failure of its version."""
        if worker_id in self.workers or worker_id in self._leaving:
            # First: where Redis is away the worker stays known, and the next step does it.
            self._condemned.note_end(worker_id, End(reason=sentence.reason, request_id=sentence.request_id))
        worker = self.workers.pop(worker_id, None)
        if worker is not None or self._leaving.drop(worker_id):
            self.prober.forget(worker_id)
            self.stop(worker_id, 0.0)
        if worker is not None:
            self._log(worker.running.version, "worker", f"Worker {worker_id} is replaced: {sentence.reason}.")
        self._condemned.remove(worker_id)

    def _lost(self, worker_id: str, reason: str, now: float, *, fatal: bool) -> None:
        worker = self.workers.pop(worker_id)
        version = worker.running.version
        self.prober.forget(worker_id)
        self.stop(worker_id, 0.0)
        self.failures.setdefault(version, Failures()).note(reason, fatal=fatal, now=now)
        self._log(version, "error", reason)

    # --------------------------------------------------------------------------------------------------- deploying
    def _deploy(self, row: store.Endpoint, now: float) -> None:
        """Take the wanted version one step nearer to serving; the old one serves meanwhile."""
        number = row.wanted_version
        version = self.services.store.version(self.id, number)
        if version.status == EndpointStatus.FAILED:
            return
        spec = self._specs[number] = store.spec_of(version)
        failures = self.failures.get(number, Failures())
        try:
            if failures.fatal or failures.count >= MAX_START_FAILURES:
                raise _GaveUpError(failures.reason)
            if self.builds.environment(version) is None:
                self._set_version(row, version, EndpointStatus.BUILDING, "The environment is being built.")
                return
            self._set_version(row, version, EndpointStatus.STARTING, "A worker is being started.")
            # As many as serve now, so that a deployment under load is no bottleneck.
            serving = len(self._of(row.serving_version, ready=True)) if row.serving_version else 0
            wanted = max(1, spec.min_workers, min(spec.max_workers, serving))
            self._start_missing(number, wanted, now)
        except UnavailableError:
            raise
        except BrineryError as error:
            self._fail(row, version, error.message)
            return
        if len(self._of(number, ready=True)) >= wanted:
            self._serve(row, version)

    def _serve(self, row: store.Endpoint, version: store.Version) -> None:
        number = version.number
        ready = EndpointStatus.READY
        if not self._advance(row, version=(ready, ""), serving_version=number, status=ready, reason=""):
            return
        self._surplus_since = None
        self._now_serving = number

    def _fail(self, row: store.Endpoint, version: store.Version, reason: str) -> None:
        """Give a version up: the serving one goes on, or the endpoint has failed."""
        number = version.number
        self._retiring.update(dict.fromkeys(self._of(number)))
        if row.serving_version:
            changes = {
                "wanted_version": row.serving_version,
                "status": EndpointStatus.READY,
                "reason": f"Version {number} failed, version {row.serving_version} still serves: {reason}",
            }
        else:
            changes = {"status": EndpointStatus.FAILED, "reason": reason}
        if self._advance(row, version=(EndpointStatus.FAILED, reason), **changes):
            self._log(number, "status", f"Version {number} failed: {reason}")

    def _set_version(self, row: store.Endpoint, version: store.Version, status: EndpointStatus, reason: str) -> None:
        if version.status == status and version.reason == reason:
            return
        shown = {} if row.serving_version else {"status": status, "reason": reason}
        if self._advance(row, version=(status, reason), **shown):
            self._log(version.number, "status", reason)

    # ----------------------------------------------------------------------------------------------------- scaling
    def _scale(self, row: store.Endpoint, load: Load, now: float) -> None:
        number = row.serving_version
        spec = self._spec_of(number)
        ready = self._of(number, ready=True)
        signals = Signals(
            ready=len(ready),
            starting=len(self._of(number)) - len(ready),
            in_flight=max(load.in_flight, int(time.time() - load.last_at < RECENT_SECONDS)),
            waiting=load.waiting + load.queued,
            idle_seconds=self._idle_seconds(now),
        )
        if not surplus(spec, signals):
            self._surplus_since = None
        elif self._surplus_since is None:
            self._surplus_since = now
        decision = decide(spec, signals)
        have = signals.ready + signals.starting
        if decision.workers > have:
            started = self._try_start(number, decision, now)
            if started:
                self._log(number, "scale", f"{have} → {have + started} workers: {decision.reason}.")
        elif decision.workers < have:
            free = [worker_id for worker_id in ready if not load.workers.get(worker_id)]
            idle = [worker_id for worker_id in free if self.prober.look(worker_id).state == "ready"]
            ending = idle[: have - decision.workers]  # one that works is left alone until it does not
            self._retiring.update(dict.fromkeys(ending))
            if ending:
                self._surplus_since = now
                self._log(number, "scale", f"{have} → {have - len(ending)} workers: {decision.reason}.")

    def _try_start(self, number: int, decision: Decision, now: float) -> int:
        before = len(self.workers)
        try:
            self._start_missing(number, decision.workers, now)
        except BrineryError as error:
            self.failures.setdefault(number, Failures()).note(error.message, fatal=False, now=now)
            self._log(number, "error", error.message)
        return len(self.workers) - before

    def _start_missing(self, number: int, wanted: int, now: float) -> None:
        """Start workers of a version until `wanted` of them run, unless an earlier failure asks for patience."""
        failures = self.failures.get(number)
        if failures is not None and now < failures.retry_at:
            return
        version = self.services.store.version(self.id, number)
        spec = self._spec_of(number)
        environment_id = self.builds.environment(version)
        if environment_id is None:
            return
        for _ in range(wanted - len(self._of(number))):
            running = self.services.runtime.start(worker_spec(self.builds, version, spec, environment_id))
            self.workers[running.id] = Worker(running, started_at=now)
            self.prober.watch(running)

    def _judge(self, row: store.Endpoint) -> None:
        """Say in the endpoint's status how its serving version is."""
        number = row.serving_version
        failures = self.failures.get(number)
        if failures is not None and not self._of(number, ready=True):
            reason = f"Workers of version {number} fail; the next start is tried soon. {failures.reason}"
            self._set_status(row, EndpointStatus.DEGRADED, reason)
        elif row.status == EndpointStatus.DEGRADED and (failures is None or self._of(number, ready=True)):
            self._set_status(row, EndpointStatus.READY, "")

    def _retire_other_versions(self, row: store.Endpoint) -> None:
        keep = {row.serving_version, row.wanted_version}
        for worker_id, worker in self.workers.items():
            if worker.running.version not in keep:
                self._retiring[worker_id] = None

    # ------------------------------------------------------------------------------------------------------ answers
    def _route(self, row: store.Endpoint) -> EndpointRoute:
        number = row.serving_version or row.wanted_version
        leaving = set(self._retiring)
        image = self.builds.image(self._spec_of(number).bundle_id)
        workers = [self.workers[worker_id].running for worker_id in self._of(row.serving_version, ready=True)]
        return EndpointRoute(
            id=self.id,
            owner=row.owner,
            status=EndpointStatus(row.status),
            reason=row.reason,
            version=row.serving_version,
            spec=self._spec_of(number),
            workers=tuple(worker_route(worker, image) for worker in workers if worker.id not in leaving),
            request_schema=self.builds.request_schema(self._spec_of(number).bundle_id),
        )

    def _of(self, version: int, *, ready: bool = False) -> list[str]:
        return [
            worker_id
            for worker_id, worker in self.workers.items()
            if worker.running.version == version and (worker.ready or not ready)
        ]

    @property
    def needs_proxy(self) -> bool:
        """Whether workers of it run that reach hosts of a list only."""
        return any(not isinstance(self._spec_of(one.running.version).egress, str) for one in self.workers.values())

    def _idle_seconds(self, now: float) -> float:
        return 0.0 if self._surplus_since is None else now - self._surplus_since

    def _spec_of(self, version: int) -> EndpointSpec:
        if version not in self._specs:
            self._specs[version] = store.spec_of(self.services.store.version(self.id, version))
        return self._specs[version]

    def _set_status(self, row: store.Endpoint, status: EndpointStatus, reason: str) -> None:
        if (row.status, row.reason) != (status, reason):
            self._advance(row, status=status, reason=reason)

    def _advance(
        self, row: store.Endpoint, *, version: tuple[EndpointStatus, str] | None = None, **changes: Any
    ) -> bool:
        """Write what became of the endpoint, and note it in `row`, unless somebody deployed or deleted it meanwhile."""
        written = self.services.store.advance(self.id, row.wanted_version, version=version, **changes)
        if written:
            for name, value in changes.items():
                setattr(row, name, value)
        return written

    def _log(self, version: int, kind: event_log.EventKind, text: str) -> None:
        event_log.append(self.services.redis, self.id, version=version, kind=kind, text=text)


class _GaveUpError(BrineryError):
    """A version's workers failed too often."""
