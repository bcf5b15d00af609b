"""What operators and clients ask a gateway about itself."""

from __future__ import annotations

import importlib.metadata
from ipaddress import ip_address
from typing import Final

from fastapi import APIRouter, Request
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response

from brinery.errors import UnavailableError
from brinery_platform.gateway.bundles import CLOUDPICKLE, PYTHON
from brinery_platform.gateway.metrics import Metrics
from brinery_platform.gateway.parts import AnyCaller, Parts, authenticated, authenticated_admin
from brinery_platform.gateway.replies import JsonResponse
from brinery_platform.gateway.task_gauges import render_tasks
from brinery_platform.runtimes import DEFAULT

FORWARDED: Final = ("forwarded", "x-forwarded-for", "via")

router = APIRouter(tags=["operations"])


@router.get("/v1/info")
async def get_info(caller: AnyCaller, gateway: Parts) -> Response:  # noqa: ARG001 - authorizes
    """Return what a client has to know before it packs a bundle."""
    runtime = gateway.services.settings.runtime
    return JsonResponse(
        {
            "version": importlib.metadata.version("brinery"),
            "python": [PYTHON],
            "cloudpickle": CLOUDPICKLE,
            "runtime": DEFAULT if runtime == "auto" else runtime,
        }
    )


@router.get("/healthz")
async def get_health() -> Response:
    """Say that the process lives."""
    return JsonResponse({"status": "ok"})


@router.get("/readyz")
async def get_readiness(gateway: Parts) -> Response:
    """Say whether this gateway can serve: it knows the endpoints, and SQL has answered lately."""
    if not gateway.table.loaded:
        raise UnavailableError("The routing table has not been read yet; is Redis there? See `brinery doctor`.")
    if not gateway.keys.fresh:
        raise UnavailableError("The database has not answered for some seconds; see `brinery doctor`.")
    if gateway.closing.is_set():
        raise UnavailableError("This gateway is stopping.")
    return JsonResponse({"status": "ready"})


@router.get("/metrics")
async def get_metrics(request: Request, gateway: Parts) -> Response:
    """Return Prometheus metrics of all owners: to this machine, or with an administrator's key."""
    if not _is_local(request):
        await authenticated_admin(await authenticated(request, gateway))
    metrics: Metrics = request.app.state.metrics
    text = metrics.render() + await render_tasks(gateway.table, gateway.tasks)
    return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})


def _is_local(request: Request) -> bool:
    """Whether a process of this machine asks for itself; a proxy in between says so in a header."""
    if request.client is None or any(name in request.headers for name in FORWARDED):
        return False
    try:
        return ip_address(request.client.host).is_loopback
    except ValueError:
        return False
