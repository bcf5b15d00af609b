"""The loop: under the lease, look at everything that is wanted and at everything that runs, and take the next steps."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final, cast

import orjson
import structlog
from redis.exceptions import RedisError

from brinery.errors import BrineryError, UnavailableError
from brinery.spec import LEASE_SECONDS, EndpointStatus
from brinery_platform import event_log, store
from brinery_platform.controller.builds import Builds
from brinery_platform.controller.endpoint import Endpoint, Load
from brinery_platform.controller.forwarder import ForwarderKeeper
from brinery_platform.controller.lease import Lease
from brinery_platform.controller.probe import Prober
from brinery_platform.routes import DEMAND, LOAD, ROUTING, WAKE
from brinery_platform.services import Services
from brinery_platform.tasks import Tasks

log = structlog.get_logger()

TICK_SECONDS: Final = 1.0
LOAD_MAX_AGE_SECONDS: Final = 5.0
REDIS_PAUSE_SECONDS: Final = 0.5


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
        self._wake = threading.Event()
        self._stopping = False
        self._prober = Prober(lambda _worker_id: self._wake.set())
        self._stoppers = ThreadPoolExecutor(max_workers=16, thread_name_prefix="stop")
        self._endpoints: dict[str, Endpoint] = {}
        self._renewed_at = 0.0
        services.runtime.on_exit = lambda _running_id: self._wake.set()

    # --------------------------------------------------------------------------------------------------------- life
    def run(self) -> None:
        """Lead, or wait for the lead, until `stop`; the workers go on after it."""
        threading.Thread(target=self._listen, name="listen", daemon=True).start()
        adopted = False  # whether memory is that of the present lead
        while not self._stopping:
            try:
                if not self._lease.renew():
                    adopted = False
                    if not self._lease.acquire():
                        self._wake.wait(TICK_SECONDS)
                        self._wake.clear()
                        continue
                if not adopted:
                    log.info("controller.leads")
                    self._adopt()
                    adopted = True
                self._lead()
            except (RedisError, UnavailableError) as error:
                log.warning("controller.waits", error=str(error))
                time.sleep(REDIS_PAUSE_SECONDS)
        self._prober.close()
        self._stoppers.shutdown(wait=True)
        self._services.runtime.close()

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
            owner = self._endpoints.get(running.endpoint_id)
            if running.kind == "builder":
                self._builds.adopt(running)
            elif owner is not None:
                owner.adopt(running)
            elif running.kind in {"worker", "forwarder"}:
                self._stop_later(running.id, 0.0)

    def _requeue_orphans(self, registered: list[tuple[str, str]], living: set[str]) -> None:
        """Requeue what forwarders of this machine ran that died together with the last leader."""
        for running_id, host in registered:
            if host == socket.gethostname() and running_id not in living:
                self._tasks.incarnation_died(running_id)

    def _lead(self) -> None:
        while not self._stopping:
            if time.monotonic() - self._renewed_at > LEASE_SECONDS / 5:
                if not self._lease.renew():
                    log.warning("controller.lost_the_lead")
                    return
                self._renewed_at = time.monotonic()
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

    def _sweep(self) -> None:
        try:
            self._tasks.sweep(self._services.objects)
        except UnavailableError as error:  # Redis, which the next step meets too, or only the object store
            log.warning("controller.sweep_waits", error=error.message)

    def _step(self, endpoint: Endpoint, row: store.Endpoint, load: Load) -> None:
        if row.status == EndpointStatus.DELETING:
            self._delete(endpoint)
            return
        route = endpoint.step(row, load)
        if route != endpoint.published:
            if not self._lease.publish(route.id, route):
                return
            endpoint.published = route
        endpoint.settle()

    def _delete(self, endpoint: Endpoint) -> None:
        """Take an endpoint apart in an order that a crash can interrupt anywhere: callers first, the row last."""
        self._lease.publish(endpoint.id, None)
        still_running = self._tasks.forget_endpoint(endpoint.id)
        if endpoint.dissolve() and not still_running:
            self._services.redis.delete(event_log.stream(endpoint.id))
            self._services.store.remove_endpoint(endpoint.id)
            self._lease.publish(endpoint.id, None)  # for a gateway that found the row a moment ago
            del self._endpoints[endpoint.id]

    def _new(self, endpoint_id: str) -> Endpoint:
        forwarder = ForwarderKeeper(self._services.runtime, self._tasks, self._stop_later, endpoint_id)
        return Endpoint(self._services, forwarder, self._builds, self._prober, self._stop_later, endpoint_id)

    def _stop_later(self, running_id: str, grace_seconds: float) -> None:
        def stop() -> None:
            self._services.runtime.stop(running_id, grace_seconds=grace_seconds)
            self._wake.set()

        self._stoppers.submit(stop)

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
            if field not in published:
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
