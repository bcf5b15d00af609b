"""The environment variables of this process: the only module of the worker that touches them."""

from __future__ import annotations

import os
from collections.abc import Mapping


def environment() -> Mapping[str, str]:
    """Return all variables, to hand them on to a child."""
    return os.environ


def set_missing(variables: Mapping[str, str]) -> None:
    """Set those variables that are not set yet: what the endpoint says wins over its bundle."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)
