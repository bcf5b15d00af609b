"""Celery's home: the application, the names of queues and tasks, and both ways of putting a message on a queue.

Tasks of endpoints are published by the scripts of `brinery_platform.transitions`, record and message in one atomic
step; everything else, such as builds, by `publish`. Either way an unmodified Celery worker reads the message.
"""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, quote, urlsplit

from celery import Celery, bootsteps
from celery.exceptions import OperationalError as CeleryOperationalError
from kombu.exceptions import OperationalError
from kombu.transport import virtual

from brinery.errors import UnavailableError

if TYPE_CHECKING:
    from brinery_platform.settings import Settings

PREDICT: Final = "brinery.predict"
BUILD: Final = "brinery.build"
BUILDS: Final = "builds"
PRIORITIES: Final = 10
RESULT_BACKEND: Final = "brinery_platform.results:ObjectsBackend"


def queue_name(endpoint_id: str) -> str:
    """Return the name of an endpoint's Celery queue."""
    return f"endpoint.{endpoint_id}"


def wire_priority(priority: int) -> int:
    """Return kombu's number for one of ours: on Redis its 0 is the most urgent, ours is 9."""
    return PRIORITIES - 1 - priority


def make_app(settings: Settings) -> Celery:
    """Return the Celery application of this process; nothing is connected yet.

    JSON only, acknowledgement after the work, one message for each free slot, and no limits, delays or retries of
    Celery's own: those are decided on the task record.
    """
    app = Celery("brinery", broker=broker_url(settings.redis), backend=RESULT_BACKEND, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        event_serializer="json",
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_create_missing_queues=True,
        task_publish_retry_policy={"max_retries": 2, "interval_start": 0.05, "interval_max": 0.2},
        worker_prefetch_multiplier=1,
        worker_enable_prefetch_count_reduction=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=5.0,
        broker_transport_options={
            "priority_steps": list(range(PRIORITIES)),
            "queue_order_strategy": "priority",
            "socket_connect_timeout": 5.0,
            "socket_keepalive": True,
        },
        result_expires=None,
        result_backend_transport_options={"objects_url": settings.objects, "records_url": settings.redis},
        result_backend_always_retry=True,
        result_backend_max_retries=float("inf"),
        result_backend_base_sleep_between_retries_ms=50,
        result_backend_max_sleep_between_retries_ms=5_000,
    )
    app.steps["consumer"].add(_OwnBookkeeping)
    return app


class _CountedInMemory(virtual.QoS):
    """Counts the messages in hand, for the prefetch limit, and notes them nowhere else.

    kombu's own kind for Redis writes each message into ``unacked`` when it comes and takes it out when it is done, so
    that a dead consumer's messages come back after the visibility timeout: two transactions with clients made anew,
    more than a third of a forwarder's CPU. Ours come back in seconds, by the sweep, which reads the records.
    """

    restore_at_shutdown = False

    def restore_visible(self, *_arguments: Any, **_options: Any) -> None:
        """Do nothing: nobody has noted anything to restore."""


class _OwnBookkeeping(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery ships no types
    """Gives a worker's channel our bookkeeping, each time that it is connected.

    It also lets a worker lose its broker with messages in hand, and go on when the broker is back: with kombu 5.7 on
    Redis, acknowledging or restoring a message of a connection that is gone raises AttributeError, which Celery takes
    for the worker's end. Neither is needed: a message that comes again is dropped by its record, and one that does
    not is published again by the sweep.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        channel = parent.task_consumer.channel
        channel.do_restore = False
        # Nothing has been delivered yet: that begins with the event loop, after every step has started.
        channel._qos = _CountedInMemory(channel, channel.qos.prefetch_count)  # type: ignore[no-untyped-call]  # kombu's


def broker_url(redis_url: str) -> str:
    """Return kombu's form of a Redis URL; they differ for unix sockets only.

    Args:
        redis_url: ``redis://``, ``rediss://`` or ``unix://[:password@]/path[?db=0&password=…]``.
    """
    parts = urlsplit(redis_url)
    if parts.scheme != "unix":
        return redis_url
    query = parse_qs(parts.query)
    user = parts.username or query.get("username", [""])[0]
    password = parts.password or quote(query.get("password", [""])[0], safe="")
    login = f"{user}:{password}@" if user or password else ""
    return f"redis+socket://{login}{parts.path}?virtual_host={query.get('db', ['0'])[0]}"


def publish(
    app: Celery,
    *,
    queue: str,
    task_name: str,
    task_id: str,
    kwargs: dict[str, Any],
    priority: int = 4,
) -> None:
    """Put a message on a queue, through Celery's own pool of producers; for calls from any thread.

    Args:
        app: What `make_app` returned.
        queue: Name of the queue, such as `BUILDS`.
        task_name: Name of the Celery task, such as `BUILD`.
        task_id: Celery's id of the message; equal ids are not merged.
        kwargs: JSON data that the task is called with.
        priority: 0 to 9, 9 most urgent.

    Raises:
        UnavailableError: The broker did not take it; it may or may not be on the queue.
    """
    try:
        app.send_task(task_name, kwargs=kwargs, task_id=task_id, queue=queue, priority=wire_priority(priority))
    except (OperationalError, CeleryOperationalError, OSError) as error:
        raise UnavailableError(
            f"The message broker did not answer ({type(error).__name__}); try again shortly.", queue=queue
        ) from error


@functools.cache
def message_template() -> str:
    """Return the message that Celery would publish for a task of an endpoint, as JSON with ``@NAMES@`` in it.

    Celery itself makes it, by publishing into kombu's memory transport; so its format is that of the installed
    Celery. The scripts put ``@ID@``, ``@QUEUE@``, ``@PRIORITY@`` and ``@SEQUENCE@`` in their places. The text is the
    same in every process, or each would leave scripts of its own in Redis.
    """
    app = Celery("brinery", broker="memory://", set_as_current=False)
    app.conf.update(task_serializer="json")
    queue = "brinery.template"
    with app.connection_for_write() as connection:
        app.send_task(PREDICT, task_id="@ID@", queue=queue, priority=0, connection=connection)
        message = connection.default_channel.basic_get(queue, no_ack=True)
        raw: dict[str, Any] = message._raw
    raw["headers"].update(origin="brinery", brinery_sequence="@SEQUENCE@")
    raw["properties"].update(priority="@PRIORITY@", reply_to=None, delivery_tag="@ID@.@SEQUENCE@")
    raw["properties"]["delivery_info"]["routing_key"] = "@QUEUE@"
    return json.dumps(raw, separators=(",", ":"))
