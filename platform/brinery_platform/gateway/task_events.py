"""Tasks followed as server-sent events: one with all of its events, or many, each as it becomes final.

Nobody who follows holds a connection to Redis, and nothing is asked of it while nothing happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import islice
from typing import Annotated, Any, Final

from annotated_types import MaxLen, MinLen
from fastapi import APIRouter, Body, Header
from starlette.responses import Response, StreamingResponse

from brinery.spec import TaskStatus
from brinery_platform.gateway.auth import Caller
from brinery_platform.gateway.follow import KEEP_ALIVE, KEEP_ALIVE_SECONDS, EventStream, frame, position
from brinery_platform.gateway.parts import AnyCaller, Gateway, Parts
from brinery_platform.gateway.task_view import own_task, shown

MAX_IDS: Final = 10_000
AT_ONCE: Final = 50
"""Records that are read at once for one stream: with inline input and result, some megabytes."""

Ids = Annotated[list[Annotated[str, MaxLen(64)]], MinLen(1), MaxLen(MAX_IDS), Body(embed=True)]

router = APIRouter(tags=["tasks"])


@router.get("/v1/tasks/{task_id}/events", response_class=StreamingResponse)
async def follow_task(
    task_id: str,
    caller: AnyCaller,
    gateway: Parts,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """Stream a task's changes of status as server-sent events, until it is final."""
    after = position(last_event_id)
    await own_task(task_id, caller, gateway)
    return EventStream(task_changes(task_id, after, gateway))


@router.post("/v1/tasks/events", response_class=StreamingResponse)
async def follow_tasks(ids: Ids, caller: AnyCaller, gateway: Parts) -> Response:
    """Stream tasks as they become final, at once those that are, until all were sent.

    An id that is not one of the caller's tasks comes as ``event: missing``. After a broken connection, ask again for
    what is left.
    """
    return EventStream(_ends(tuple(dict.fromkeys(ids)), caller, gateway))


async def task_changes(task_id: str, after: str, gateway: Gateway) -> AsyncIterator[bytes]:
    """Yield a task's events as frames until it is final, and a comment where nothing comes for a while.

    Args:
        task_id: The caller's own.
        after: Id of the last event that is known already.
        gateway: This process's parts.
    """
    with gateway.changes.watch((task_id,)) as woken:
        while not gateway.closing.is_set():
            with woken.looking() as worth_a_look:
                if worth_a_look:
                    news, over = await _news(task_id, after, gateway)
                    for event_id, fields in news:
                        yield frame(_change(fields), event_id=event_id)
                        after = event_id
                    if over:
                        return
            if not await woken.wait(KEEP_ALIVE_SECONDS):
                yield KEEP_ALIVE


async def _news(task_id: str, after: str, gateway: Gateway) -> tuple[list[tuple[str, dict[str, str]]], bool]:
    """Return a task's events after one of them, and whether they are its last."""
    news = await gateway.tasks.events(task_id, after)
    if news:
        return news, TaskStatus(news[-1][1]["status"]).final
    standing = await gateway.tasks.standing(task_id)
    if standing is not None and not standing[1].final:
        return [], False
    return await gateway.tasks.events(task_id, after), True  # the last one may have come between the two


def _change(fields: dict[str, str]) -> dict[str, Any]:
    return {
        "status": fields["status"],
        "at": float(fields["at"]),
        "attempt": int(fields["attempt"]),
        "reason": fields["reason"],
    }


async def _ends(task_ids: tuple[str, ...], caller: Caller, gateway: Gateway) -> AsyncIterator[bytes]:
    left = set(task_ids)
    with gateway.done.watch(task_ids) as woken:
        while left and not gateway.closing.is_set():
            with woken.looking() as worth_a_look:
                for some in _batches(worth_a_look & left):
                    for one in await asyncio.gather(*(_end(task_id, caller, gateway) for task_id in some)):
                        if one is not None:
                            task_id, sent = one
                            left.discard(task_id)
                            yield sent
            if left and not await woken.wait(KEEP_ALIVE_SECONDS):
                yield KEEP_ALIVE


async def _end(task_id: str, caller: Caller, gateway: Gateway) -> tuple[str, bytes] | None:
    """Return a task and how its end is sent, or None while it goes on; payloads are read of final tasks only."""
    standing = await gateway.tasks.standing(task_id)
    if standing is not None and standing[0] == caller.owner:
        if not standing[1].final:
            return None
        task = await gateway.tasks.get(task_id)
        if task is not None:
            return (task_id, frame(shown(task, gateway))) if task.status.final else None
    return task_id, frame({"id": task_id}, event="missing")


def _batches(task_ids: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(task_ids)
    while batch := list(islice(remaining, AT_ONCE)):
        yield batch
