"""What happens to an endpoint, followed: its events and build lines, and its workers' output."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from brinery.errors import NotFoundError
from brinery.spec import EndpointStatus
from brinery_platform.event_log import stream
from brinery_platform.gateway.follow import Entry, EventStream, StreamReader, frame, position
from brinery_platform.gateway.parts import AnyCaller, Gateway, Parts

LOOK_AGAIN_SECONDS: Final = 5.0
"""How often a version's row is read although nothing was said of it."""
ROUTED_SECONDS: Final = 5.0
ROUTED_LOOK_SECONDS: Final = 0.002

router = APIRouter(tags=["endpoints"])


@router.get("/v1/endpoints/{name}/events", response_class=StreamingResponse)
async def follow_events(
    name: str,
    caller: AnyCaller,
    gateway: Parts,
    follow: bool = False,
    version: Annotated[int | None, Query(ge=1)] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """Stream an endpoint's events.

    Without ``follow`` it ends after those that are kept. With ``follow`` and ``version`` it ends with ``event: done``
    when that version is ready, has failed, or is superseded.
    """
    endpoint = await run_in_threadpool(gateway.services.store.endpoint, caller.owner, name)
    if version is not None:
        await run_in_threadpool(gateway.services.store.version, endpoint.id, version)
    frames = endpoint_events(gateway, endpoint.id, position(last_event_id), follow=follow, version=version)
    return EventStream(frames, gateway.follower())


async def endpoint_events(
    gateway: Gateway, endpoint_id: str, after: str, *, follow: bool, version: int | None
) -> AsyncIterator[bytes]:
    """Yield an endpoint's events as frames; ``b""`` when some time has passed.

    Args:
        gateway: This process's parts.
        endpoint_id: Whose.
        after: Id of the last event that is known already.
        follow: Go on after those that are kept.
        version: Only of this version, and to the end of its deployment.
    """
    look_at, block = 0.0, False
    reader = StreamReader(gateway.services.aredis, stream(endpoint_id), after)
    while not gateway.closing.is_set():
        batch = await reader.read(block=block)
        for entry in batch:
            if (shown := _framed(entry, version)) is not None:
                yield shown
            if entry[1]["kind"] == "status":
                look_at = 0.0
        block = not batch
        if batch:
            continue  # only when everything that is kept was sent is it time for the end
        if not follow:
            return
        if version is not None and time.monotonic() >= look_at:
            outcome = await run_in_threadpool(_outcome, gateway, endpoint_id, version)
            if outcome is not None:
                async for entry in reader.rest():  # written since the last look
                    if (shown := _framed(entry, version)) is not None:
                        yield shown
                if outcome["status"] == EndpointStatus.READY:
                    await _until_routed(gateway, endpoint_id, version)
                yield frame(outcome, event="done")
                return
            look_at = time.monotonic() + LOOK_AGAIN_SECONDS
        yield b""


def _framed(entry: Entry, version: int | None) -> bytes | None:
    """Return an entry as it is sent, or None if it is about another version."""
    entry_id, fields = entry
    number = int(fields["version"])
    if number not in {0, version or number}:
        return None
    data = {
        "id": entry_id,
        "at": float(fields["at"]),
        "version": number,
        "kind": fields["kind"],
        "text": fields["text"],
    }
    return frame(data, event_id=entry_id)


async def _until_routed(gateway: Gateway, endpoint_id: str, version: int) -> None:
    """Wait until this gateway sends calls to `version`, so that whoever is told "ready" meets the new code."""
    give_up_at = time.monotonic() + ROUTED_SECONDS
    while time.monotonic() < give_up_at:
        lane = gateway.table.by_id(endpoint_id)
        if lane is not None and lane.route.version >= version:
            return
        await asyncio.sleep(ROUTED_LOOK_SECONDS)


def _outcome(gateway: Gateway, endpoint_id: str, number: int) -> dict[str, Any] | None:
    """Return how a version's deployment ended, or None while it goes on."""
    store = gateway.services.store
    try:
        version = store.version(endpoint_id, number)
    except NotFoundError:
        return {"status": EndpointStatus.FAILED, "reason": "The endpoint was deleted."}
    if version.status == EndpointStatus.READY:
        return {"status": version.status, "reason": version.reason}
    newest = max((each.number for each in store.versions(endpoint_id)), default=0)
    if newest > number:
        return {"status": "superseded", "reason": version.reason or f"Version {newest} took its place."}
    return {"status": version.status, "reason": version.reason} if version.status == EndpointStatus.FAILED else None


@router.get("/v1/endpoints/{name}/logs", response_class=StreamingResponse)
async def read_logs(
    name: str,
    caller: AnyCaller,
    gateway: Parts,
    tail: Annotated[int, Query(ge=0, le=10_000)] = 200,
    follow: bool = False,
) -> Response:
    """Stream what the endpoint's workers print, each line with its worker's id in front."""
    endpoint = await run_in_threadpool(gateway.services.store.endpoint, caller.owner, name)
    if follow:
        lines = gateway.logs.follow(endpoint.id, tail, gateway.follower())
    else:
        lines = gateway.logs.last(endpoint.id, tail)
    return StreamingResponse(lines, media_type="text/plain; charset=utf-8")
