"""What went into a task and what came out, as bytes: whole or in parts, from the record or the object store."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Final

from fastapi import APIRouter, Header
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from brinery.errors import ConflictError
from brinery.spec import TaskStatus
from brinery_platform.gateway.parts import AnyCaller, Gateway, Parts
from brinery_platform.gateway.proxy import safe_content_type
from brinery_platform.gateway.task_view import own_task, why_failed
from brinery_platform.objects import CHUNK_BYTES, Objects

_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")

RangeHeader = Annotated[str | None, Header(alias="range")]

router = APIRouter(tags=["tasks"])


@router.get("/v1/tasks/{task_id}/input", response_class=Response)
async def get_input(task_id: str, caller: AnyCaller, gateway: Parts, wanted: RangeHeader = None) -> Response:
    """Return the input's bytes as they came, or a part of them."""
    task = await own_task(task_id, caller, gateway)
    return await _payload(gateway, task.input or b"", task.input_object, task.input_type, wanted)


@router.get("/v1/tasks/{task_id}/result", response_class=Response)
async def get_result(task_id: str, caller: AnyCaller, gateway: Parts, wanted: RangeHeader = None) -> Response:
    """Return the result's bytes as the worker gave them, or a part of them; a failed task answers its own error."""
    task = await own_task(task_id, caller, gateway)
    if not task.status.final:
        raise ConflictError(
            f"The task is {task.status}; wait with GET /v1/tasks/{task_id}?wait_seconds=60.", task_id=task_id
        )
    if task.status != TaskStatus.SUCCEEDED:
        raise why_failed(task)
    return await _payload(gateway, task.result or b"", task.result_object, task.result_type or "", wanted)


async def _payload(gateway: Gateway, inline: bytes, key: str | None, kind: str, wanted: str | None) -> Response:
    """Return a payload, or the part of it that a client wants.

    Args:
        gateway: This process's parts.
        inline: Its bytes, where they lie in the record.
        key: Of the object that has them, where they do not.
        kind: Its content type as it came.
        wanted: The ``Range`` header.
    """
    objects = gateway.services.objects
    size = len(inline) if key is None else await run_in_threadpool(objects.size, key)
    start, end = _range(wanted, size)
    partial = wanted is not None and (start, end) != (0, size)
    headers = {
        "accept-ranges": "bytes",
        "content-length": str(end - start),
        "content-type": safe_content_type(kind),
    }
    if partial:
        headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
    status = 206 if partial else 200
    if key is None:
        return Response(inline[start:end], status_code=status, headers=headers)
    return StreamingResponse(_pieces(objects, key, start, end - start), status_code=status, headers=headers)


def _pieces(objects: Objects, key: str, start: int, length: int) -> Iterator[bytes]:
    if not length:
        return
    with objects.open(key, start=start, length=length) as stream:
        while piece := stream.read(CHUNK_BYTES):
            yield piece


def _range(wanted: str | None, size: int) -> tuple[int, int]:
    """Return the first byte and the one after the last; all of them for a range that is not understood.

    Source: RFC 9110, section 14: a server may ignore ``Range``.
    """
    match = _RANGE.fullmatch(wanted or "")
    if match is None or match.groups() == ("", ""):
        return 0, size
    first, last = match.groups()
    if not first:
        return max(size - int(last), 0), size
    start, end = int(first), min(int(last) + 1 if last else size, size)
    return (start, end) if start < end else (0, size)
