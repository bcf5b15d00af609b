"""The platform's Celery application for Celery's own tools: ``celery -A brinery_platform.celery_app inspect active``.

It reads the settings as every process of the platform does, so ``BRINERY_HOME`` or ``BRINERY_REDIS_URL`` names the
platform. Forwarders do not use it.
"""

from __future__ import annotations

from brinery_platform.broker import make_app
from brinery_platform.settings import read_settings

app = make_app(read_settings())
