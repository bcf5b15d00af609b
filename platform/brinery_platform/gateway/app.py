"""The gateway's application: FastAPI for the API, and the hot path in front of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from brinery.errors import BrineryError, InvalidRequestError, NotFoundError, UnavailableError
from brinery.spec import new_id
from brinery_platform.gateway import bundles, endpoints, events, keys, openapi, operations, tasks
from brinery_platform.gateway.auth import KeyTable
from brinery_platform.gateway.lanes import Lane
from brinery_platform.gateway.load import LoadReporter
from brinery_platform.gateway.metrics import Metrics
from brinery_platform.gateway.parts import Gateway
from brinery_platform.gateway.predict import PREFIX, SUFFIX, Headers, HungUpError, Predict, matches
from brinery_platform.gateway.proxy import Upstream
from brinery_platform.gateway.replies import error_response, marked, unexpected_error
from brinery_platform.gateway.routing import RoutingTable, follow_routing
from brinery_platform.gateway.signals import DoneFeed
from brinery_platform.gateway.submit import submit_task
from brinery_platform.gateway.worker_logs import WorkerLogs
from brinery_platform.services import Services, connect
from brinery_platform.settings import Settings
from brinery_platform.tasks import AsyncTasks

RESTART_SECONDS: Final = 1.0
ROUTERS: Final = (bundles, endpoints, events, tasks, keys, operations, openapi)

logger = structlog.get_logger(__name__)


def create_app(settings: Settings) -> GatewayApp:
    """Return the application; everything it needs is opened when it starts.

    Args:
        settings: This process's settings.
    """
    app = GatewayApp(settings)
    for module in ROUTERS:
        app.include_router(module.router)
    app.add_route(f"{PREFIX}{{name}}{SUFFIX}", _not_yet, methods=["POST"], include_in_schema=False)
    app.add_exception_handler(BrineryError, _answer_ours)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_unexpected)
    return app


class GatewayApp(FastAPI):
    """FastAPI behind one `if`: requests of the hot path pass by all of its machinery.

    Args:
        settings: This process's settings.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(title="Brinery", version=metadata.version("brinery"), openapi_url=None, lifespan=_lifespan)
        self.settings = settings
        self._predict: Predict | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the life of the application."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        request_id = scope["brinery.request_id"] = new_id("req")
        try:
            if self._predict is not None and matches(scope):
                await self._predict(scope, receive, send)
            else:
                await super().__call__(scope, receive, marked(send, request_id))
        except HungUpError:
            return
        except Exception:
            logger.exception("request_failed", request_id=request_id, path=scope["path"])

    @asynccontextmanager
    async def opened(self, services: Services) -> AsyncIterator[None]:
        """Hold everything open that serving needs.

        Args:
            services: The platform's parts.
        """
        keys_known, table, closing = KeyTable(services.store), RoutingTable(services.store), asyncio.Event()
        gateway = Gateway(
            services=services,
            keys=keys_known,
            table=table,
            tasks=AsyncTasks(services.aredis),
            done=DoneFeed(services.aredis),
            logs=WorkerLogs(lambda: services.runtime, closing),
            closing=closing,
        )
        upstream, load, metrics = Upstream(), LoadReporter(services.aredis, table), Metrics(table)

        async def submit(lane: Lane, headers: Headers, body: bytes) -> Response:
            return await submit_task(gateway, lane, headers, body)

        self._predict = Predict(
            keys=keys_known, table=table, upstream=upstream, metrics=metrics, load=load, submit=submit
        )
        self.state.gateway, self.state.metrics = gateway, metrics
        loops = (keys_known.run, lambda: follow_routing(services.aredis, table), gateway.done.run, load.run)
        running = [asyncio.create_task(_for_ever(loop)) for loop in loops]
        try:
            yield
        finally:
            closing.set()
            for task in running:
                task.cancel()
            await asyncio.wait(running)
            await self._predict.close()
            await load.forget()
            upstream.close()
            await services.aredis.aclose()
            gateway.logs.close()
            services.redis.close()
            services.store.close()

    def begin_shutdown(self) -> None:
        """Let everybody go who only waits or follows; calls that run go on."""
        gateway: Gateway | None = getattr(self.state, "gateway", None)
        if gateway is not None:
            gateway.closing.set()
            gateway.done.wake_all()


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    assert isinstance(app, GatewayApp), "only GatewayApp has this lifespan"  # noqa: S101 - for the type checker
    async with app.opened(connect(app.settings)):
        yield


async def _for_ever(loop: Callable[[], Awaitable[None]]) -> None:
    """Run one of the background loops; what it did not foresee is logged, and it starts again."""
    while True:
        try:
            await loop()
        except Exception:
            logger.exception("background_loop_failed")
        await asyncio.sleep(RESTART_SECONDS)


async def _not_yet(_request: Request) -> Response:
    """Stand where the hot path is, for other methods and for requests that come too early."""
    raise UnavailableError("This gateway is starting; try again.")


async def _answer_ours(_request: Request, error: Any) -> Response:
    return error_response(error)


async def _answer_invalid(_request: Request, error: Any) -> Response:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part not in {"body", "query", "path", "header"})
    text = first["msg"] if first["type"] != "json_invalid" else "the body is not JSON"
    return error_response(InvalidRequestError(f"{field}: {text}" if field else f"{text}.", field=field))


async def _answer_http(request: Request, error: Any) -> Response:
    if error.status_code == NotFoundError.status:
        return error_response(NotFoundError(f"There is nothing at {request.url.path}; see /openapi.json."))
    text = f"{request.method} {request.url.path}: {error.detail}; see /openapi.json."
    response = error_response(InvalidRequestError(text), status=error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _answer_unexpected(request: Request, _error: Exception) -> Response:
    return error_response(unexpected_error(request.scope["brinery.request_id"]))
