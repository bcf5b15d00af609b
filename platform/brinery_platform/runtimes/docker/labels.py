"""The labels on all that we make in a Docker engine: whose it is, what it is, and what a worker was started as."""

from __future__ import annotations

from typing import Final

HOME: Final = "brinery.home"
"""`detached.home_mark`: several platforms may share an engine, and none touches what is another's."""
KIND: Final = "brinery.kind"
"""``worker``, ``build`` or ``layer`` (containers); ``base``, ``environment`` or ``bundle`` (images); ``workers``."""
ID: Final = "brinery.id"
RUNNING: Final = "brinery.running"
"""JSON of `Running` without its addresses, which the engine knows."""
PYTHON: Final = "brinery.python"
SOURCE: Final = "brinery.source"
"""What a base was made from: an image's name, or ``machine``."""
ENVIRONMENT: Final = "brinery.environment"
FORMAT: Final = "brinery.format"
"""Of a base: `BASE_FORMAT` of the platform that made it."""
BASE_FORMAT: Final = "1"
"""Changes when a base needs something that older ones lack; those are then not built upon any more."""
