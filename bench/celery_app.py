"""Raw Celery with its own defaults, on the platform's embedded Redis; its worker serves ``celery_app:app``.

``BRINERY_HOME`` names the platform, ``BENCH_CELERY_RESULTS`` where results go: ``store``, which is the platform's
result backend on its object store, or ``redis``, Celery's.
"""

from __future__ import annotations

import os

from celery import Celery
from workload import describe

from brinery_platform.broker import RESULT_BACKEND, broker_url
from brinery_platform.settings import read_settings

TASK = "bench.describe"


def make(results: str) -> Celery:
    """Return the application whose results go to the ``store`` or to ``redis``; its one task is `TASK`."""
    settings = read_settings()
    app = Celery("bench", broker=broker_url(settings.redis), set_as_current=False)
    if results == "redis":
        app.conf.result_backend = broker_url(settings.redis)
    else:
        app.conf.update(
            result_backend=RESULT_BACKEND,
            result_backend_transport_options={"objects_url": settings.objects},
            result_expires=None,
        )
    app.task(describe, name=TASK)
    return app


if "BENCH_CELERY_RESULTS" in os.environ:
    app = make(os.environ["BENCH_CELERY_RESULTS"])
