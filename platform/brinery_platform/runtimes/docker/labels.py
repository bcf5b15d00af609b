"""The labels on all that we make in a Docker engine: whose it is, what it is, and what a worker was started as."""

from __future__ import annotations

from typing import Final

HOME: Final = "brinery.home"
"""`detached.home_mark`: several platforms may share an engine, and none touches what is another's."""
KIND: Final = "brinery.kind"
"""``worker``, ``platform``, ``build``, ``layer`` or ``trial`` (containers); ``base``, ``environment`` or ``bundle``
(images); ``workers`` or ``inner`` (networks); ``volume`` (volumes, and containers that prepare them)."""
ID: Final = "brinery.id"
RUNNING: Final = "brinery.running"
"""JSON of `Running` without its addresses, which the engine knows."""
PORT: Final = "brinery.port"
"""Where a runnable image listens; only its containers have it."""
OWNER: Final = "brinery.owner"
NAME: Final = "brinery.name"
"""Of a volume: whose it is, and what they call it."""
PYTHON: Final = "brinery.python"
SOURCE: Final = "brinery.source"
"""What a base was made from: an image's name, or ``machine``."""
ENVIRONMENT: Final = "brinery.environment"
FORMAT: Final = "brinery.format"
"""Of a base: `BASE_FORMAT` of the platform that made it."""
BASE_FORMAT: Final = "1"
"""Changes when a base needs something that older ones lack; those are then not built upon any more."""
