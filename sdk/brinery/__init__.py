"""Turn Python functions and models into services: ``from brinery import endpoint``.

Importing this package imports light modules only; what needs HTTP, pydantic and the like comes with its first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# At once and not on demand: when the import system loads the submodule `brinery.endpoint` it binds that name to the
# module, and this line binds it to the decorator again, for good.
from brinery.endpoint import Bundle, Endpoint, endpoint

if TYPE_CHECKING:
    from brinery.client import Client
    from brinery.completion import as_completed
    from brinery.deployment import Deployment
    from brinery.errors import (
        AuthenticationError,
        BrineryError,
        ConflictError,
        DeploymentError,
        InvalidRequestError,
        NotFoundError,
        OverloadedError,
        PackingError,
        PayloadTooLargeError,
        PermissionDeniedError,
        RemoteError,
        TaskCancelledError,
        TaskExpiredError,
        UnavailableError,
        UnsupportedPayloadError,
        UpstreamTimeoutError,
        WorkerBusyError,
        WorkerError,
    )
    from brinery.future import Future
    from brinery.image import Image
    from brinery.request import current_request
    from brinery.spec import TaskStatus

_HOMES = {
    "Client": "client",
    "Deployment": "deployment",
    "Future": "future",
    "Image": "image",
    "TaskStatus": "spec",
    "as_completed": "completion",
    "current_request": "request",
}

__all__ = [
    "AuthenticationError",
    "BrineryError",
    "Bundle",
    "Client",
    "ConflictError",
    "Deployment",
    "DeploymentError",
    "Endpoint",
    "Future",
    "Image",
    "InvalidRequestError",
    "NotFoundError",
    "OverloadedError",
    "PackingError",
    "PayloadTooLargeError",
    "PermissionDeniedError",
    "RemoteError",
    "TaskCancelledError",
    "TaskExpiredError",
    "TaskStatus",
    "UnavailableError",
    "UnsupportedPayloadError",
    "UpstreamTimeoutError",
    "WorkerBusyError",
    "WorkerError",
    "as_completed",
    "current_request",
    "endpoint",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("brinery")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"brinery.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
