"""The loop: under the lease, look at everything that is wanted and at everything that runs, and take the next steps."""

from __future__ import annotations

import socket
import threading
import time
from typing import Final, cast

import orjson
import structlog
from redis.exceptions import RedisError

from brinery.errors import BrineryError, UnavailableError
from brinery.spec import LEASE_SECONDS, EndpointStatus
from brinery_platform import event_log, store
from brinery_platform.condemned import Condemned
from brinery_platform.controller.builds import Builds
from brinery_platform.controller.desk import Desk
from brinery_platform.controller.egress import ProxyKeeper
from brinery_platform.controller.endpoint import Endpoint
from brinery_platform.controller.farewell import end_all, gateway_lives
from brinery_platform.controller.forwarder import ForwarderKeeper
from brinery_platform.controller.lease import Lease
from brinery_platform.controller.load import Load
from brinery_platform.controller.probe import Prober
from brinery_platform.controller.stops import Stops
from brinery_platform.controller.usage import UsageKeeper
from brinery_platform.routes import DEMAND, DESK, LOAD, LOAD_MAX_AGE_SECONDS, ROUTING, WAKE
from brinery_platform.runtimes.base import Running
from brinery_platform.services import Services
from brinery_platform.tasks import Tasks

log = structlog.get_logger()

TICK_SECONDS: Final = 1.0
REDIS_PAUSE_SECONDS: Final = 0.5
EGRESS_GRACE_SECONDS: Final = 5.0
OUTDATED_GRACE_SECONDS: Final = 30.0
"""What a forwarder of an earlier image may take to finish; its successor works beside it."""
STUCK_SECONDS: Final = 120.0
"""A round takes less: a container starts in 0.3 s, and an image of a bundle is made in 0.2 s."""


class Controller:
    """Everything that the leader holds in memory; all of it can be rebuilt from SQL, Redis and the runtime.

    Args:
        services: The platform's parts.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lease = Lease(services.redis)
        self._tasks = Tasks(services.redis)
        self._builds = Builds(services)
        self._condemned = Condemned(services.redis)
        self._wake = threading.Event()
        self._stopping = False
        self._prober = Prober(lambda _worker_id: self._wake.set())
        self._stops = Stops(services.runtime, self._wake.set)
        self._proxy = ProxyKeeper(services.runtime, self._stops.order)
        self._usage = UsageKeeper(services.runtime, services.redis)
        self._endpoints: dict[str, Endpoint] = {}
        self._renewed_at = 0.0
        self._stepped_at = time.monotonic()
        self._waits_for = "it has not asked yet who leads"
        self._leads = False
        self._desk: Desk | None = None
        services.runtime.on_exit = lambda _running_id: self._wake.set()

    # --------------------------------------------------------------------------------------------------------- life
    def run(self) -> None:
        """Lead, or wait for the lead, until `stop`; the workers go on after it."""
        threading.Thread(target=self._listen, name="listen", daemon=True).start()
        settings = self._services.settings
        if settings.runtime == "docker" or settings.desk_port:
            self._desk = Desk(
                self._services.runtime, healthy=self._sick, ready=lambda: self._waits_for, port=settings.desk_port
            )
        adopted = False  # whether memory is that of the present lead
        while not self._stopping:
            try:
                self._stepped_at = time.monotonic()
                if not self._lease.renew():
                    adopted = self._leads = False
                    if not self._lease.acquire():
                        self._waits_for = ""  # another one leads, and that is well
                        self._wake.wait(TICK_SECONDS)
                        self._wake.clear()
                        continue
                if not adopted:
                    log.info("controller.leads")
                    self._adopt()
                    adopted = True
                self._leads, self._waits_for = True, ""
                self._announce()
                self._lead()
            except (RedisError, UnavailableError) as error:
                if str(error) != self._waits_for:
                    log.warning("controller.waits", error=str(error))
                self._waits_for = str(error)
                time.sleep(REDIS_PAUSE_SECONDS)
        self._end()

    def _end(self) -> None:
        if self._desk is not None:
            self._desk.close()
        self._usage.close()
        self._prober.close()
        self._stops.close()
        if self._services.settings.platform_image and self._leads:
            try:
                if not gateway_lives(self._services.redis):
                    end_all(self._services.runtime)
            except RedisError as error:
                log.warning("controller.leaves_all_as_it_is", error=str(error))
        self._services.runtime.close()

    def _sick(self) -> str:
        """Return what is wrong with this process, ``""`` for nothing."""
        silent = time.monotonic() - self._stepped_at
        return f"its loop has not gone round for {silent:.0f} s" if silent > STUCK_SECONDS else ""

    def _announce(self) -> None:
        """Tell where the desk of the leader is."""
        if self._desk is not None:
            self._lease.announce(DESK, self._desk.address.dumps())

    def stop(self) -> None:
        """End the loop after the step that it is in."""
        self._stopping = True
        self._wake.set()

    def _adopt(self) -> None:
        """Begin anew from what really runs: an earlier leader's memory is worth nothing."""
        for endpoint in self._endpoints.values():
            for worker_id in endpoint.workers:
                self._prober.forget(worker_id)
        self._endpoints = {row.id: self._new(row.id) for row in self._services.store.endpoints()}
        registered = self._tasks.forwarders()  # first: whoever is in it and lives is in the list after it
        everything = self._services.runtime.list()
        self._requeue_orphans(registered, {running.id for running in everything})
        for running in everything:
            self._lease.renew()  # each one that hangs takes seconds to be asked
            owner = self._endpoints.get(running.endpoint_id)
            if running.kind == "builder":
                self._builds.adopt(running)
            elif running.kind in {"forwarder", "egress"} and self._services.runtime.outdated(running.id):
                self._replace(running)
            elif running.kind == "egress":
                self._proxy.adopt()
            elif owner is not None:
                owner.adopt(running)
            elif running.kind in {"worker", "forwarder"}:
                self._stops.order(running.id, 0.0)

    def _replace(self, running: Running) -> None:
        """End what is of an earlier image; whoever keeps it starts another one."""
        log.info("controller.replaces", running_id=running.id, reason="of another image")
        if running.kind == "egress":  # at once, for its successor has the same id
            self._services.runtime.stop(running.id, grace_seconds=EGRESS_GRACE_SECONDS)
            self._proxy.adopt()
        else:
            self._stops.order(running.id, OUTDATED_GRACE_SECONDS)

    def _requeue_orphans(self, registered: list[tuple[str, str]], living: set[str]) -> None:
        """Requeue what forwarders of this machine ran that died together with the last leader."""
        for running_id, host in registered:
            if host == socket.gethostname() and running_id not in living:
                self._tasks.incarnation_died(running_id)

    def _lead(self) -> None:
        while not self._stopping:
            self._stepped_at = time.monotonic()
            if time.monotonic() - self._renewed_at > LEASE_SECONDS / 5:
                if not self._lease.renew():
                    log.warning("controller.lost_the_lead")
                    return
                self._renewed_at = time.monotonic()
                self._announce()
                self._sync_routing()
            self._tick()
            self._wake.wait(TICK_SECONDS)
            self._wake.clear()
        self._lease.release()

    # -------------------------------------------------------------------------------------------------------- steps
    def _tick(self) -> None:
        self._sweep()
        rows = self._services.store.endpoints()
        loads = self._loads([row.id for row in rows])
        registered = {running_id for running_id, _host in self._tasks.forwarders()}
        self._usage.look({worker: one_id for one_id, one in self._endpoints.items() for worker in one.workers})
        for row in rows:
            endpoint = self._endpoints.get(row.id) or self._new(row.id)
            self._endpoints[row.id] = endpoint
            endpoint.forwarder.hear(registered)
            try:
                self._step(endpoint, row, loads[row.id])
            except RedisError:
                raise
            except BrineryError as error:
                log.warning("controller.step_failed", endpoint_id=row.id, error=error.message)
            except Exception:
                # Whatever is wrong with one endpoint (its disk is full, say), the others go on.
                log.exception("controller.step_failed", endpoint_id=row.id)
        self._proxy.keep(needed=any(endpoint.needs_proxy for endpoint in self._endpoints.values()))

    def _sweep(self) -> None:
        try:
            self._tasks.sweep(self._services.objects)
        except UnavailableError as error:  # Redis, which the next step meets too, or only the object store
            log.warning("controller.sweep_waits", error=error.message)

    def _step(self, endpoint: Endpoint, row: store.Endpoint, load: Load) -> None:
        if row.status == EndpointStatus.DELETING:
            self._delete(endpoint, load)
            return
        route = endpoint.step(row, load)
        if route != endpoint.published:
            if not self._lease.publish(route.id, route):
                return
            endpoint.published = route
        endpoint.settle()

    def _delete(self, endpoint: Endpoint, load: Load) -> None:
        """Take an endpoint apart in an order that a crash can interrupt anywhere: callers first, the row last."""
        self._lease.publish(endpoint.id, None)
        endpoint.published = None
        still_running = self._tasks.forget_endpoint(endpoint.id)
        if endpoint.dissolve(load) and not still_running:
            self._services.redis.delete(event_log.stream(endpoint.id))
            self._services.store.remove_endpoint(endpoint.id)
            self._lease.publish(endpoint.id, None)  # for a gateway that found the row a moment ago
            del self._endpoints[endpoint.id]

    def _new(self, endpoint_id: str) -> Endpoint:
        forwarder = ForwarderKeeper(self._services.runtime, self._tasks, self._stops.order, endpoint_id)
        return Endpoint(self._services, forwarder, self._builds, self._prober, self._stops.order, endpoint_id)

    def _sync_routing(self) -> None:
        """Write the whole table again where Redis holds another number of rows, as after a restore or a deletion."""
        published = {
            endpoint_id.encode(): endpoint.published
            for endpoint_id, endpoint in self._endpoints.items()
            if endpoint.published
        }
        if self._services.redis.hlen(ROUTING) == len(published):
            return
        rows = cast("list[bytes]", self._services.redis.hkeys(ROUTING))
        for field in rows:
            # What a new leader has not looked at yet keeps the row of the last one: its callers go on.
            if field.decode() not in self._endpoints:
                self._lease.publish(field.decode(), None)
        for endpoint_id, route in published.items():
            self._lease.publish(endpoint_id.decode(), route)

    # ------------------------------------------------------------------------------------------------------ signals
    def _loads(self, endpoint_ids: list[str]) -> dict[str, Load]:
        loads = {endpoint_id: Load() for endpoint_id in endpoint_ids}
        now = time.time()
        reports: dict[bytes, bytes] = self._services.redis.hgetall(LOAD)  # type: ignore[assignment]  # the sync client
        for reporter, raw in reports.items():
            report = orjson.loads(raw)
            if now - report["at"] > LOAD_MAX_AGE_SECONDS:
                self._services.redis.hdel(LOAD, reporter)
                continue
            for endpoint_id, seen in report["endpoints"].items():
                load = loads.get(endpoint_id)
                if load is not None:
                    load.in_flight += seen["in_flight"]
                    load.waiting += seen["waiting"]
                    load.last_at = max(load.last_at, seen["last_at"])
                    for worker_id, calls in seen.get("workers", {}).items():
                        load.workers[worker_id] = load.workers.get(worker_id, 0) + calls
        for worker_id, sentence in self._condemned.read().items():
            if sentence.endpoint_id in loads:
                loads[sentence.endpoint_id].condemned[worker_id] = sentence
            else:
                self._condemned.remove(worker_id)
        for endpoint_id, backlog in self._tasks.backlogs().items():
            if endpoint_id in loads:
                loads[endpoint_id].open, loads[endpoint_id].queued = backlog.open, backlog.queued
        return loads

    def _listen(self) -> None:
        """Turn `wake` and `demand` messages into a look at once; the tick finds what is missed here."""
        while not self._stopping:
            try:
                with self._services.redis.pubsub(ignore_subscribe_messages=True) as pubsub:  # type: ignore[no-untyped-call]  # redis-py
                    pubsub.subscribe(WAKE, DEMAND)
                    while not self._stopping:
                        if pubsub.get_message(timeout=TICK_SECONDS):
                            self._wake.set()
            except RedisError:
                time.sleep(REDIS_PAUSE_SECONDS)
