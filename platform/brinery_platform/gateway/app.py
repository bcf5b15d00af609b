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
from brinery.spec import Task, new_id
from brinery_platform.async_tasks import AsyncTasks
from brinery_platform.gateway import (
    bundles,
    endpoints,
    events,
    keys,
    openapi,
    operations,
    task_events,
    task_payloads,
    tasks,
    webhooks,
)
from brinery_platform.gateway.auth import KeyTable
from brinery_platform.gateway.ends import Ends
from brinery_platform.gateway.front import FrontRoute, Headers, HungUpError
from brinery_platform.gateway.lanes import Lane
from brinery_platform.gateway.load import LoadReporter
from brinery_platform.gateway.metrics import Metrics
from brinery_platform.gateway.parts import Gateway
from brinery_platform.gateway.predict import PREDICT_PATH, Predict
from brinery_platform.gateway.proxy import Upstream
from brinery_platform.gateway.replies import error_response, marked, unexpected_error
from brinery_platform.gateway.routing import RoutingTable, follow_routing
from brinery_platform.gateway.signals import Feed
from brinery_platform.gateway.stopping import Stopping
from brinery_platform.gateway.submit import submit_task
from brinery_platform.gateway.task_front import SUBMIT_AS_PATH, SUBMIT_PATH, TASK_PATH, SubmitRoute, TaskRoute
from brinery_platform.gateway.worker_logs import WorkerLogs
from brinery_platform.services import Services, connect
from brinery_platform.settings import Settings
from brinery_platform.tasks import CHANGES, DONE

RESTART_SECONDS: Final = 1.0
ROUTERS: Final = (bundles, endpoints, events, tasks, task_events, task_payloads, webhooks, keys, operations, openapi)
IN_FRONT: Final = (
    ("POST", PREDICT_PATH),
    ("POST", SUBMIT_PATH),
    ("PUT", SUBMIT_AS_PATH),
    ("GET", TASK_PATH),
)
"""Methods and paths that are served in front of FastAPI; see `GatewayApp`."""

_UNREADABLE: Final = "There was an error parsing the body"
"""What FastAPI says of a body that Python's JSON reader gives up without a position."""
_SEE: Final = "see /openapi.json (it asks for your key, too)."

logger = structlog.get_logger(__name__)


def create_app(settings: Settings) -> GatewayApp:
    """Return the application; everything it needs is opened when it starts.

    Args:
        settings: This process's settings.
    """
    app = GatewayApp(settings)
    for module in ROUTERS:
        app.include_router(module.router)
    for method, path in IN_FRONT:
        app.add_route(path, _not_yet, methods=[method], include_in_schema=False)
    app.add_exception_handler(BrineryError, _answer_ours)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_unexpected)
    return app


class GatewayApp(FastAPI):
    """FastAPI behind one `match`: requests of the hot path pass by all of its machinery.

    Args:
        settings: This process's settings.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(title="Brinery", version=metadata.version("brinery"), openapi_url=None, lifespan=_lifespan)
        self.settings = settings
        self._predict: Predict | None = None
        self._submit: SubmitRoute | None = None
        self._task: TaskRoute | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the life of the application."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        request_id = scope["brinery.request_id"] = new_id("req")
        try:
            route = self._in_front(scope)
            if route is not None:
                await route(scope, receive, send)
            else:
                await super().__call__(scope, receive, marked(send, request_id))
        except HungUpError:
            return
        except Exception:
            logger.exception("request_failed", request_id=request_id, path=scope["path"])

    def _in_front(self, scope: Scope) -> FrontRoute | None:
        """Return what serves a request in front of FastAPI, if anything does; see `IN_FRONT`."""
        match [scope["method"], *scope["path"].split("/")]:
            case ["POST", "", "v1", "endpoints", _, "predict"]:
                return self._predict
            case ["GET", "", "v1", "tasks", task_id] if task_id:
                return self._task
            case ["POST", "", "v1", "endpoints", _, "tasks"] | ["PUT", "", "v1", "endpoints", _, "tasks", _]:
                return self._submit
        return None

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
            done=Feed(services.aredis, DONE),
            changes=Feed(services.aredis, CHANGES),
            logs=WorkerLogs(lambda: services.visible, closing),
            closing=closing,
        )
        upstream, load, metrics = Upstream(), LoadReporter(services.aredis, table), Metrics(table)

        async def submit(lane: Lane, headers: Headers, body: bytes) -> Task:
            return await submit_task(gateway, lane, headers, body)

        self._predict = Predict(
            keys=keys_known,
            table=table,
            upstream=upstream,
            metrics=metrics,
            load=load,
            submit=submit,
            stop=Stopping(upstream, services.aredis).stop,
            ends=Ends(upstream, services.aredis),
        )
        self._submit, self._task = SubmitRoute(gateway, metrics), TaskRoute(gateway)
        self.state.gateway, self.state.metrics = gateway, metrics
        sending = webhooks.open_webhooks(gateway, metrics.webhook)
        loops = (
            keys_known.run,
            lambda: follow_routing(services.aredis, table),
            gateway.done.run,
            gateway.changes.run,
            load.run,
            sending.run,
        )
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
            sending.close()
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
            gateway.changes.wake_all()


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
    if first["type"] == "json_invalid":
        text = f"The body is not JSON: {first['ctx']['error']} (char {first['loc'][-1]})."
        return error_response(InvalidRequestError(text))
    field = ".".join(str(part) for part in first["loc"] if part not in {"body", "query", "path", "header"})
    text = first["msg"]
    return error_response(InvalidRequestError(f"{field}: {text}" if field else f"{text}.", field=field))


async def _answer_http(request: Request, error: Any) -> Response:
    if error.status_code == NotFoundError.status:
        return error_response(NotFoundError(f"There is nothing at {request.url.path}; {_SEE}"))
    if error.status_code == 400 and error.detail == _UNREADABLE:
        return error_response(InvalidRequestError("The body is not JSON: it is no UTF-8, or nested too deep."))
    text = f"{request.method} {request.url.path}: {error.detail}; {_SEE}"
    response = error_response(InvalidRequestError(text), status=error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _answer_unexpected(request: Request, _error: Exception) -> Response:
    return error_response(unexpected_error(request.scope["brinery.request_id"]))
