"""What Prometheus reads: requests, their times, and what is in flight or held; cheap enough for the hot path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from brinery_platform.gateway.lanes import Lane

_BUCKETS: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    300.0,
)
HUNG_UP_STATUS: Final = 499
"""Counted for a client that left before its answer: by itself, because it is no error of a request."""
_LABELS: Final = ("owner", "endpoint")


class Metrics:
    """The gateway's own registry.

    Args:
        lanes: What the gauges of a scrape go over.
    """

    def __init__(self, lanes: Iterable[Lane]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "brinery_requests",
            "Predict requests by endpoint and class of status",
            (*_LABELS, "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "brinery_request_seconds",
            "Time from a predict request's arrival to its last byte",
            _LABELS,
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._submissions = Counter(
            "brinery_submissions",
            "Requests to accept a task by endpoint and class of status",
            (*_LABELS, "status"),
            registry=self._registry,
        )
        self._webhooks = Counter(
            "brinery_webhooks", "Tries to deliver a webhook by outcome", ("outcome",), registry=self._registry
        )
        self._cold = Histogram(
            "brinery_cold_wait_seconds",
            "Time that a predict request waited because its endpoint had no worker",
            _LABELS,
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._children: dict[tuple[str, str, int], tuple[Callable[[], None], Callable[[float], None]]] = {}
        self._submission_children: dict[tuple[str, str, int], Callable[[], None]] = {}
        self._registry.register(_LaneGauges(lanes))

    def observe(self, owner: str, endpoint: str, status: int, seconds: float) -> None:
        """Count one request.

        Args:
            owner: Of the endpoint.
            endpoint: Its name.
            status: HTTP status of the reply, or `HUNG_UP_STATUS`.
            seconds: From arrival to the last byte.
        """
        key = (owner, endpoint, _class_of(status))
        children = self._children.get(key)
        if children is None:
            children = self._children[key] = (
                self._requests.labels(owner, endpoint, _shown(status)).inc,
                self._seconds.labels(owner, endpoint).observe,
            )
        children[0]()
        children[1](seconds)

    def submitted(self, owner: str, endpoint: str, status: int) -> None:
        """Count one request to accept a task; see `observe`."""
        key = (owner, endpoint, _class_of(status))
        count = self._submission_children.get(key)
        if count is None:
            count = self._submission_children[key] = self._submissions.labels(owner, endpoint, _shown(status)).inc
        count()

    def waited_cold(self, owner: str, endpoint: str, seconds: float) -> None:
        """Count one request that came while its endpoint had no worker, and got one after so many seconds."""
        self._cold.labels(owner, endpoint).observe(seconds)

    def webhook(self, outcome: str) -> None:
        """Count one try to deliver a webhook: ``delivered``, ``retried`` or ``failed``."""
        self._webhooks.labels(outcome).inc()

    def render(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


def _class_of(status: int) -> int:
    return status if status == HUNG_UP_STATUS else status // 100


def _shown(status: int) -> str:
    return str(status) if status == HUNG_UP_STATUS else f"{status // 100}xx"


class _LaneGauges(Collector):
    """Reads the gauges when they are scraped, so that the hot path never sets them."""

    def __init__(self, lanes: Iterable[Lane]) -> None:
        self._lanes = lanes

    def collect(self) -> Iterator[Metric]:
        in_flight = GaugeMetricFamily("brinery_in_flight", "Requests at workers now", labels=_LABELS)
        held = GaugeMetricFamily("brinery_held", "Requests that wait for a slot now", labels=_LABELS)
        workers = GaugeMetricFamily("brinery_ready_workers", "Workers that can be given requests", labels=_LABELS)
        for lane in list(self._lanes):
            labels = (lane.route.owner, lane.route.spec.name)
            in_flight.add_metric(labels, lane.in_flight)
            held.add_metric(labels, lane.waiting)
            workers.add_metric(labels, len(lane.workers))
        yield from (in_flight, held, workers)
