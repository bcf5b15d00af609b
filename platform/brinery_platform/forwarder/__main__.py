"""The forwarder's process: a Celery worker on one endpoint's queue, whose every message is a `ForwarderWork.take`.

Run as ``python -m brinery_platform.forwarder --endpoint end_… --id fwd_…``. It takes as many messages at once as the
endpoint's ready workers have slots, so that the rest waits in the queue in the order of its priority.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import socket
import sys
import threading
import time
import warnings
from typing import Any, Final

import orjson
import structlog
from celery import Celery, bootsteps, signals
from celery.exceptions import Ignore, SecurityWarning

from brinery.errors import BrineryError, UnavailableError
from brinery.spec import new_id
from brinery_platform.broker import PREDICT, queue_name
from brinery_platform.forwarder.incarnation import Incarnation
from brinery_platform.forwarder.reports import WorkerLogs
from brinery_platform.forwarder.slots import MAX_SLOTS, Slots
from brinery_platform.forwarder.work import RETRY_SECONDS, ForwarderWork
from brinery_platform.logs import configure_logging
from brinery_platform.routes import LOAD, ROUTING, EndpointRoute
from brinery_platform.services import Services, connect
from brinery_platform.settings import read_settings
from brinery_platform.tasks import CANCEL, Tasks, redis_errors

log = structlog.get_logger()

PULSE_SECONDS: Final = 1.0
HEARTBEAT_SECONDS: Final = 10.0
"""How often Celery's events say that this forwarder lives; for Flower and ``celery events``, nothing of ours."""


class Forwarder:
    """One endpoint's forwarder: its Celery application and the two threads beside it.

    Args:
        services: The parts of the platform.
        endpoint_id: Whose queue.
        running_id: ``fwd_…``, under which the controller started it.
    """

    def __init__(self, services: Services, endpoint_id: str, running_id: str) -> None:
        self._client = services.redis
        self._endpoint_id = endpoint_id
        self._running_id = running_id
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._slots = Slots()
        self._consumer: Any = None
        self._adjusting = threading.Lock()  # or a number of slots that came while Celery connects would be forgotten
        self._loaded = b""
        tasks = Tasks(self._client)
        self._incarnation = Incarnation(tasks, running_id)
        self.work = ForwarderWork(
            endpoint_id,
            tasks=tasks,
            objects=services.objects,
            client=self._client,
            incarnation=self._incarnation,
            slots=self._slots,
            logs=WorkerLogs(lambda: services.visible, services.settings.home),
            stopping=self._stopping,
        )
        self.app: Celery = services.celery
        _register(self.app, self)

    def run(self) -> int:
        """Consume until SIGTERM, which lets running requests finish and gives back what is not started.

        Returns:
            The process's exit code.
        """
        self._register_patiently()
        signals.worker_shutting_down.connect(self._on_shutting_down, weak=False)
        threads = [
            threading.Thread(target=self._listen, name="listen"),
            threading.Thread(target=self._pulse, name="pulse"),
        ]
        for thread in threads:
            thread.start()
        worker = self.app.Worker(
            queues=[queue_name(self._endpoint_id)],
            pool="threads",
            concurrency=MAX_SLOTS,
            hostname=f"{self._running_id}@{socket.gethostname()}",
            loglevel="WARNING",
            without_gossip=True,
            without_mingle=True,
            heartbeat_interval=HEARTBEAT_SECONDS,
            quiet=True,
        )
        try:
            worker.start()
        finally:
            self._on_shutting_down()
            self._ended.set()
            for thread in threads:
                thread.join()
            self.work.close()
            with contextlib.suppress(UnavailableError), redis_errors():
                self._client.hdel(LOAD, self._incarnation.id)
                self._incarnation.retire()
        return int(worker.exitcode or 0)

    def on_connected(self, consumer: Any) -> None:
        """Take as many messages from now on as there are slots; called on Celery's thread at each (re)connection."""
        with self._adjusting:
            self._consumer = consumer
            prefetch = self._slots.prefetch
            consumer.initial_prefetch_count = prefetch
            consumer.qos.value = prefetch
            consumer.qos.set(prefetch)

    def _register_patiently(self) -> None:
        while True:
            try:
                return self._incarnation.register()
            except UnavailableError as error:
                log.warning("waiting", reason=error.message)
                time.sleep(RETRY_SECONDS)

    def _on_shutting_down(self, **_signal: Any) -> None:
        self._stopping.set()
        self._slots.wake()

    # ---------------------------------------------------------------------------------------------- its threads
    def _listen(self) -> None:
        """Follow the routing table and the cancellations."""
        while not self._ended.is_set():
            try:
                with redis_errors(), self._client.pubsub() as pubsub:  # type: ignore[no-untyped-call]  # redis-py's
                    pubsub.subscribe(ROUTING, CANCEL)
                    while not self._ended.is_set():
                        message = pubsub.get_message(timeout=PULSE_SECONDS)
                        if message is not None:
                            self._hear(message)
            except UnavailableError as error:
                log.warning("waiting", reason=error.message)
                self._ended.wait(RETRY_SECONDS)
            except Exception:
                # A thread's outermost place: without it, no cancellation and no new worker would be heard of.
                log.exception("listening failed")
                self._ended.wait(RETRY_SECONDS)

    def _hear(self, message: dict[str, Any]) -> None:
        if message["type"] == "subscribe":
            # At the start and after each reconnection, also one that the client made by itself: whatever was said
            # in between was missed.
            if message["channel"] == ROUTING.encode():
                self._read_route()
            else:
                self.work.recheck()
        elif message["channel"] == CANCEL.encode():
            self.work.cancel(message["data"].decode())
        elif message["data"] == self._endpoint_id.encode():
            self._read_route()

    def _read_route(self) -> None:
        with redis_errors():
            raw = self._client.hget(ROUTING, self._endpoint_id)
        self._slots.update(EndpointRoute.loads(raw) if isinstance(raw, bytes) else None)
        self.work.calls.forget(self._slots.workers)
        with self._adjusting:
            if self._consumer is not None and self._consumer.qos is not None:
                qos = self._consumer.qos
                change = self._slots.prefetch - qos.value
                if change > 0:
                    qos.increment_eventually(change)
                elif change < 0:
                    qos.decrement_eventually(-change)

    def _pulse(self) -> None:
        """Once a second: renew the lease, write the load, cut what is late."""
        while not self._ended.wait(PULSE_SECONDS):
            try:
                self.work.cut_late()
                self._incarnation.renew()
                self._write_load()
            except UnavailableError as error:
                log.warning("waiting", reason=error.message)
            except Exception:
                # A thread's outermost place: without a pulse, what runs here would be given to another forwarder.
                log.exception("the pulse failed")

    def _write_load(self) -> None:
        # What waits is counted by the records already, wherever it waits.
        now = time.time()
        mine: dict[str, Any] = {"in_flight": self._slots.in_flight, "waiting": 0, "last_at": self._slots.last_at}
        if at_images := self._slots.at_images:
            mine["workers"] = at_images
        state = orjson.dumps(mine)
        if not mine["in_flight"] and state == self._loaded:
            return
        entry = orjson.dumps({"at": now, "endpoints": {self._endpoint_id: mine}})
        with redis_errors():
            self._client.hset(LOAD, self._incarnation.id, entry)
        self._loaded = state


def _register(app: Celery, forwarder: Forwarder) -> None:
    """Give the application its one task and the step that bounds what it takes."""

    class Predict(app.Task):  # type: ignore[misc]  # Celery ships no types
        name = PREDICT
        ignore_result = False
        resultrepr_maxsize = 0  # Celery's events show results; they are the users' and are not sent around
        throws = (BrineryError,)

        def run(self) -> Any:
            settled = forwarder.work.take(self.request.id)
            if settled is None:
                raise Ignore
            # A large result is stored by now. What follows, Celery's own note in the object store, nobody waits for.
            forwarder.work.settle(settled)
            if settled.error is not None:
                raise settled.error
            return settled.answer

    class Connected(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery ships no types
        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, parent: Any) -> None:
            forwarder.on_connected(parent)

    app.register_task(Predict())
    app.steps["consumer"].add(Connected)


def main() -> None:
    """Run the forwarder that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m brinery_platform.forwarder", description=__doc__)
    parser.add_argument("--endpoint", required=True, metavar="end_…", help="the endpoint whose queue to consume")
    parser.add_argument("--id", default="", metavar="fwd_…", help="under which the controller started it")
    arguments = parser.parse_args()
    settings = read_settings()
    configure_logging(settings.log_level)
    # Celery speaks through the standard library. Its line about each task shows the result, and results never go to
    # logs; and it warns of root because of pickle, which `accept_content` refuses.
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    warnings.filterwarnings("ignore", category=SecurityWarning)
    sys.exit(Forwarder(connect(settings), arguments.endpoint, arguments.id or new_id("fwd")).run())


if __name__ == "__main__":
    main()
