"""What is counted of tasks, for Prometheus; it lies in Redis, so every gateway tells the same figures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from brinery.errors import UnavailableError
from brinery_platform.async_tasks import AsyncTasks
from brinery_platform.gateway.lanes import Lane
from brinery_platform.task_figures import Figures

READ_SECONDS: Final = 2.0
"""Limit of reading them all: a scrape that finds Redis away tells the rest."""
_LABELS: Final = ("owner", "endpoint")

logger = structlog.get_logger(__name__)


async def render_tasks(lanes: Iterable[Lane], tasks: AsyncTasks) -> bytes:
    """Return the figures of every endpoint's tasks in Prometheus' text format; nothing while Redis is away."""
    listed = [lane for lane in lanes if lane.listed]
    try:
        async with asyncio.timeout(READ_SECONDS):
            figures = await asyncio.gather(*(tasks.figures(lane.route.id) for lane in listed))
    except (TimeoutError, UnavailableError) as error:
        logger.warning("task_figures_not_read", error=str(error))
        return b""
    return tell(list(zip(listed, figures, strict=True)))


def tell(rows: list[tuple[Lane, Figures]]) -> bytes:
    """Return figures in Prometheus' text format: each endpoint with its own."""
    registry = CollectorRegistry()
    registry.register(_TaskFigures(rows))
    return generate_latest(registry)


class _TaskFigures(Collector):
    """One scrape's figures.

    Args:
        rows: Each endpoint with its own.
    """

    def __init__(self, rows: list[tuple[Lane, Figures]]) -> None:
        self._rows = rows

    def collect(self) -> Iterable[Metric]:
        """Return a family for each figure."""
        unfinished = GaugeMetricFamily("brinery_tasks_open", "Tasks that have not ended", labels=_LABELS)
        queued = GaugeMetricFamily("brinery_tasks_queued", "Tasks that wait for a worker now", labels=_LABELS)
        oldest = GaugeMetricFamily(
            "brinery_tasks_oldest_seconds", "How long the oldest of the waiting tasks has waited", labels=_LABELS
        )
        dead = GaugeMetricFamily("brinery_tasks_dead", "Dead letters", labels=_LABELS)
        ended = CounterMetricFamily(
            "brinery_tasks_finished", "Tasks that have ended, by status", labels=(*_LABELS, "status")
        )
        now = time.time()
        for lane, figures in self._rows:
            labels = (lane.route.owner, lane.route.spec.name)
            backlog = figures.backlog
            unfinished.add_metric(labels, backlog.open)
            queued.add_metric(labels, backlog.queued)
            waited = now - backlog.oldest_queued_at if backlog.oldest_queued_at is not None else 0.0
            oldest.add_metric(labels, max(0.0, waited))
            dead.add_metric(labels, figures.dead)
            for status, count in figures.finished.items():
                ended.add_metric((*labels, status), count)
        return (unfinished, queued, oldest, dead, ended)
