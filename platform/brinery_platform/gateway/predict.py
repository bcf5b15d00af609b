"""A synchronous call: key, endpoint and worker are found in memory, then bytes go there and back."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import orjson
import structlog
from starlette.types import Receive

from brinery.errors import (
    InvalidRequestError,
    OverloadedError,
    UnavailableError,
    UpstreamTimeoutError,
    WorkerBusyError,
    WorkerError,
)
from brinery.spec import (
    CONTENT_EVENTS,
    CONTENT_JSON,
    HEADER_ANSWERED_BY,
    HEADER_REQUEST_ID,
    HEADER_TIMEOUT_SECONDS,
    Task,
)
from brinery_platform.gateway.auth import Caller, KeyTable
from brinery_platform.gateway.ends import Ends
from brinery_platform.gateway.front import FrontRequest, FrontRoute, Headers, HungUpError
from brinery_platform.gateway.lanes import Lane, Worker
from brinery_platform.gateway.load import LoadReporter
from brinery_platform.gateway.metrics import Metrics
from brinery_platform.gateway.proxy import LostError, NotSentError, Reply, Upstream
from brinery_platform.gateway.replies import Answer
from brinery_platform.gateway.routing import RoutingTable, why_hopeless
from brinery_platform.gateway.schemas import check_arguments
from brinery_platform.gateway.submit import answer_accepted
from brinery_platform.gateway.watch import Watch

PREFIX: Final = "/v1/endpoints/"
SUFFIX: Final = "/predict"
PREDICT_PATH: Final = f"{PREFIX}{{name}}{SUFFIX}"
MAX_HELD_BYTES: Final = 512 * 1024 * 1024
"""Bodies of all held requests together; above it, 429."""
BUSY_SECONDS: Final = 0.005
"""How long a worker that is busy with others' requests is left alone; it waits up to 20 ms for a slot by itself."""
REFUSED_SECONDS: Final = 1.0
"""How long a worker that takes no connection is left alone."""
LOADING_SECONDS: Final = 0.05
"""How long a worker is left alone whose serving process died and loads its bundle again."""
IMAGE_BUSY_SECONDS: Final = 0.1
"""How long an image is left alone that says, by its status alone, that it is busy."""
_END: Final = b"\n\nevent: done\ndata: {}\n\n"
"""What a worker of ours ends its events with, and an image does not; an event before it may lack its empty line."""
_REST_SECONDS: Final = {WorkerBusyError.wire_type(): BUSY_SECONDS, UnavailableError.wire_type(): LOADING_SECONDS}
_FROM_WORKER: Final = {HEADER_ANSWERED_BY: "worker"}
"""Goes onto a worker's own errors: an image's have any shape, and would be taken for those of a proxy."""
_NOT_TAKEN_STATUSES: Final = frozenset({WorkerBusyError.status, UnavailableError.status})

Submit = Callable[[Lane, Headers, bytes], Awaitable[Task]]
"""Accepts a request as a task instead."""

Stop = Callable[[Lane, Worker, str], Awaitable[None]]
"""Stops the call of this id at a worker; returns when it has, or when that cannot be known."""

logger = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Call:
    """One request on its way: where it goes, what it carries, and whether a worker has it."""

    lane: Lane
    request_id: str
    body: bytes
    content_type: str
    streaming: bool
    timeout_seconds: float
    watch: Watch
    sent: bool = False


class Predict(FrontRoute):
    """The hot path: ``POST /v1/endpoints/{name}/predict``.

    Args:
        keys: Who may call.
        table: Where to.
        upstream: Connections to the workers.
        metrics: Counts every call.
        load: Told when somebody waits and no worker is ready.
        submit: Takes a request that prefers to be answered later.
        stop: Stops a call that nobody waits for any more.
        ends: Says why a worker ended a call's connection.
    """

    def __init__(
        self,
        *,
        keys: KeyTable,
        table: RoutingTable,
        upstream: Upstream,
        metrics: Metrics,
        load: LoadReporter,
        submit: Submit,
        stop: Stop,
        ends: Ends,
    ) -> None:
        super().__init__(keys)
        self._table = table
        self._upstream = upstream
        self._metrics = metrics
        self._load = load
        self._submit = submit
        self._stop_call = stop
        self._ends = ends
        self._held_bytes = 0
        self._background: set[asyncio.Task[None]] = set()

    async def serve(self, caller: Caller, request: FrontRequest) -> None:
        """Call the endpoint's function, or take the call as a task where the caller prefers that."""
        name = request.path[len(PREFIX) : -len(SUFFIX)]
        lane = self._table.find(caller.owner, name) or await self._table.resolve(caller.owner, name)
        request.lane = lane
        body = await request.body()
        if b"respond-async" in request.headers.get(b"prefer", b""):
            await answer_accepted(request.answer, lane, await self._submit(lane, request.headers, body))
        else:
            await self._serve(lane, request.headers, body, request.receive, request.answer)

    def count(self, request: FrontRequest) -> None:
        """Note how a call ended; one for an endpoint that does not exist is nobody's."""
        if request.lane is not None:
            route = request.lane.route
            self._metrics.observe(route.owner, route.spec.name, request.answer.status, request.seconds)

    async def _serve(self, lane: Lane, headers: Headers, body: bytes, receive: Receive, answer: Answer) -> None:
        seconds = timeout_seconds(headers, lane)
        watch = Watch(receive, seconds)
        call = _Call(
            lane=lane,
            request_id=answer.request_id,
            body=body,
            content_type=headers.get(b"content-type", b"application/json").decode("latin-1"),
            streaming=CONTENT_EVENTS.encode() in headers.get(b"accept", b""),
            timeout_seconds=seconds,
            watch=watch,
        )
        try:
            again = False
            while not await self._attempt(call, lane.take() or await self._hold(call, again), answer):
                again = True
        except asyncio.CancelledError:
            if not watch.expired and not watch.hung_up:
                raise  # the server stops
            watch.task.uncancel()
            if watch.hung_up:
                raise HungUpError from None
            raise _timed_out(call) from None
        finally:
            watch.close()

    async def _hold(self, call: _Call, again: bool) -> Worker:
        """Wait for a slot.

        Args:
            call: What waits.
            again: Whether it had one before, at a worker that was busy or gone: then it is next.
        """
        lane, came_at = call.lane, time.monotonic()
        cold = not lane.workers
        if cold:
            if (hopeless := why_hopeless(lane.route)) is not None:
                raise hopeless()
            if call.content_type.startswith(CONTENT_JSON):
                check_arguments(lane.route.request_schema, call.body)
            if not lane.waiting:
                self._load.demand(lane)
        if self._held_bytes + len(call.body) > MAX_HELD_BYTES:
            raise OverloadedError(
                "The bodies of waiting requests fill the gateway's memory; try again shortly.",
                retry_after_seconds=1,
            )
        self._held_bytes += len(call.body)
        try:
            worker = await lane.wait(first=again)
        finally:
            self._held_bytes -= len(call.body)
        if cold:
            self._metrics.waited_cold(lane.route.owner, lane.route.spec.name, time.monotonic() - came_at)
        return worker

    async def _attempt(self, call: _Call, worker: Worker, answer: Answer) -> bool:
        """Send the call to one worker; return False if that worker did not take it.

        The slot is given back in any case: at once, or when a call that was cut short has stopped.
        """
        try:
            taken = await self._exchange(call, worker, answer)
        except asyncio.CancelledError:
            task = asyncio.create_task(self._stop(call.lane, worker, call.request_id))
            self._background.add(task)
            task.add_done_callback(self._background.discard)
            raise
        except BaseException:
            call.lane.release(worker)
            raise
        call.lane.release(worker)
        return taken

    async def _exchange(self, call: _Call, worker: Worker, answer: Answer) -> bool:
        call.sent = True
        headers = {
            "Content-Type": call.content_type,
            HEADER_REQUEST_ID: call.request_id,
            HEADER_TIMEOUT_SECONDS: f"{call.watch.seconds_left:.3f}",
        }
        try:
            reply = await self._upstream.post(
                worker.url,
                _stream_path(call, worker, headers) if call.streaming else worker.predict_path,
                call.body,
                headers,
            )
        except NotSentError as error:
            logger.info("worker_refused", worker_id=worker.id, error=str(error))
            call.lane.pause(worker, REFUSED_SECONDS)
            call.sent = False
            return False
        except LostError as lost:
            raise await self._ends.explain(worker, call.request_id, lost) from None
        try:
            whole = await reply.whole()
            if reply.status in _NOT_TAKEN_STATUSES and (rest := _rest_seconds(worker, whole)):
                call.lane.pause(worker, rest)
                call.sent = False
                return False
            if call.streaming and not worker.control_url:
                await _pass_events_on(reply, whole, answer)
            else:
                await _pass_on(reply, whole, answer)
        except LostError as lost:
            if answer.started and not answer.events:
                raise WorkerError(lost.message, cause=lost.cause) from None  # what was begun is only cut off
            raise await self._ends.explain(worker, call.request_id, lost) from None
        finally:
            reply.close()
        return True

    async def _stop(self, lane: Lane, worker: Worker, request_id: str) -> None:
        """Stop a call that nobody waits for any more, and only then give its slot back."""
        try:
            await self._stop_call(lane, worker, request_id)
        finally:
            lane.release(worker)

    async def close(self) -> None:
        """Let the calls that were cut short be stopped."""
        if self._background:
            await asyncio.wait(self._background)


async def _pass_on(reply: Reply, whole: bytes | None, answer: Answer) -> None:
    extra = _FROM_WORKER if reply.status >= HTTPStatus.BAD_REQUEST else None
    if whole is not None:
        await answer.start(reply.status, reply.content_type, len(whole), extra)
        await answer.end(whole)
        return
    if reply.content_type == CONTENT_EVENTS:
        await answer.start(reply.status, reply.content_type, None, extra)  # the client sees at once that it is served
    async for piece in reply.pieces():
        if not answer.started:
            await answer.start(reply.status, reply.content_type, reply.size, extra)
        await answer.piece(piece)
    if not answer.started:
        await answer.start(reply.status, reply.content_type, 0, extra)
    await answer.end()


async def _pass_events_on(reply: Reply, whole: bytes | None, answer: Answer) -> None:
    """Pass an image's events on, and say when they end, as a worker of ours does."""
    if reply.content_type != CONTENT_EVENTS:
        await _pass_on(reply, whole, answer)
        return
    await answer.start(reply.status, reply.content_type, None)
    if whole is not None:
        await answer.piece(whole)
    else:
        async for piece in reply.pieces():
            await answer.piece(piece)
    await answer.end(_END)


def _stream_path(call: _Call, worker: Worker, headers: dict[str, str]) -> str:
    """Return where a call goes that wants a stream; an image may want to hear of it in a header."""
    if not worker.stream_path:
        name = call.lane.route.spec.name
        raise InvalidRequestError(
            f"The image of {name!r} has no stream route; leave out `Accept: {CONTENT_EVENTS}`, or deploy it with "
            "stream_route.",
            endpoint=name,
        )
    if not worker.control_url:
        headers["Accept"] = CONTENT_EVENTS
    return worker.stream_path


def timeout_seconds(headers: Headers, lane: Lane) -> float:
    """Return the limit of a call: the endpoint's, or less where the caller asks for less.

    Raises:
        InvalidRequestError: The header is no positive number.
    """
    limit = lane.route.spec.timeout_seconds
    given = headers.get(HEADER_TIMEOUT_SECONDS.lower().encode())
    if given is None:
        return limit
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidRequestError(f"{HEADER_TIMEOUT_SECONDS} must be a number of seconds above 0, such as 2.5.")
    return min(limit, seconds)


def _rest_seconds(worker: Worker, body: bytes | None) -> float:
    """Return how long a worker that did not take a call is left alone, 0 where the answer does not say that."""
    if not worker.control_url:
        return IMAGE_BUSY_SECONDS
    if body is None:
        return 0.0
    try:
        return _REST_SECONDS.get(orjson.loads(body)["error"]["type"], 0.0)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return 0.0


def _timed_out(call: _Call) -> UpstreamTimeoutError:
    route, seconds = call.lane.route, f"{call.timeout_seconds:g} s"
    if call.sent:
        text = f"{route.spec.name!r} gave no answer within {seconds}; the call was stopped."
        cure = "Raise the endpoint's timeout_seconds, or submit long work as a task."
    elif call.lane.workers:
        text = f"Every worker of {route.spec.name!r} was busy for {seconds}."
        cure = "Raise max_workers or concurrency, or submit it as a task."
    else:
        reason = f" ({route.reason})" if route.reason else ""
        text = f"No worker of {route.spec.name!r} became ready within {seconds}; it is {route.status}{reason}."
        cure = f"`brinery logs {route.spec.name}` shows why; a larger timeout waits longer."
    return UpstreamTimeoutError(f"{text} {cure}", endpoint=route.spec.name, request_id=call.request_id)
