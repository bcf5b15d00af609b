"""A task's input on its way to the worker, and its result on the way back, from and to record and object store."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final, Protocol, TypeVar, cast

import orjson

from brinery.errors import UnavailableError, WorkerError
from brinery.spec import (
    CONTENT_JSON,
    HEADER_ATTEMPT,
    HEADER_REQUEST_ID,
    HEADER_TASK_ID,
    HEADER_TIMEOUT_SECONDS,
    INLINE_BYTES,
    TaskStatus,
)
from brinery_platform.forwarder.attempt import Attempt
from brinery_platform.forwarder.outcomes import Settled
from brinery_platform.forwarder.worker_calls import Reply
from brinery_platform.objects import Objects
from brinery_platform.records import result_object
from brinery_platform.transitions import Claim

T = TypeVar("T")

SPOOL_BYTES: Final = 8 * 1024 * 1024
CONTENT_BYTES: Final = "application/octet-stream"
"""Of a result that was called JSON and is none."""


class Patient(Protocol):
    """Repeats a call until the object store answers; see `ForwarderWork`."""

    def __call__(self, call: Callable[[], T]) -> T:
        """Return what `call` returns in the end."""


@contextlib.contextmanager
def request_of(claim: Claim, objects: Objects, patient: Patient) -> Iterator[tuple[bytes | BinaryIO, dict[str, str]]]:
    """Open a task's input; yields the body and the headers of the request.

    Args:
        claim: The attempt.
        objects: Where a large input lies.
        patient: Waits for the store.

    Raises:
        NotFoundError: The input is not there.
    """
    task = claim.task
    headers = {
        "Content-Type": task.input_type,
        HEADER_REQUEST_ID: claim.request_id,
        HEADER_TASK_ID: task.id,
        HEADER_ATTEMPT: str(task.attempt),
        HEADER_TIMEOUT_SECONDS: f"{task.timeout_seconds:g}",
    }
    if task.input_object is None:
        yield task.input or b"", headers
        return
    key = task.input_object
    headers["Content-Length"] = str(patient(lambda: objects.size(key)))
    with contextlib.ExitStack() as stack:
        stream = patient(lambda: stack.enter_context(objects.open(key)))
        yield stream, headers


class InputStream:
    """A large input on its way to the worker; while the store lets us wait for it, the attempt's clock stands still.

    Args:
        stream: The opened input.
        attempt: In whose thread it is read.
    """

    def __init__(self, stream: BinaryIO, attempt: Attempt) -> None:
        self._stream = stream
        self._attempt = attempt

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes; empty at the end.

        Raises:
            UnavailableError: The store went away.
        """
        with self._attempt.paused():
            try:
                return self._stream.read(size)
            except OSError as error:  # else it would be taken for the worker's connection
                raise UnavailableError(f"The input cannot be read: {error}.") from error


def store_result(claim: Claim, reply: Reply, objects: Objects, patient: Patient) -> Settled:
    """Keep a result: small ones travel in the record, large ones lie in the object store when this returns.

    Raises:
        WorkerError: The worker ended its connection in the middle of it, or there is no room to keep it here.
        PayloadTooLargeError: It is larger than a result may be.
    """
    first = reply.read_up_to(INLINE_BYTES + 1)
    values: dict[str, Any] = {"result_type": reply.content_type or CONTENT_JSON}
    answer: Any = {"type": values["result_type"]}
    if len(first) <= INLINE_BYTES:
        values["result"] = first
        if values["result_type"].startswith(CONTENT_JSON):
            try:
                answer = orjson.loads(first)
            except orjson.JSONDecodeError:  # it would be put into lists of tasks as it is, and break them
                values["result_type"] = answer["type"] = CONTENT_BYTES
        return Settled(claim=claim, status=TaskStatus.SUCCEEDED, values=values, answer=answer)
    key = result_object(claim.task.id, claim.task.attempt)
    # Kept here first: the worker's answer cannot be asked for again if the store is away.
    with tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES) as spool:
        with _room():
            spool.write(first)
        while data := reply.read(SPOOL_BYTES):
            with _room():
                spool.write(data)
        with _room():
            spool.flush()

        def put() -> int:
            spool.seek(0)
            return objects.put(key, cast("BinaryIO", spool))

        size = patient(put)
    values["result_object"] = key
    answer |= {"object": key, "size_bytes": size}
    return Settled(claim=claim, status=TaskStatus.SUCCEEDED, values=values, answer=answer)


@contextlib.contextmanager
def _room() -> Iterator[None]:
    """Let a full temporary folder cost this attempt and not the task."""
    try:
        yield
    except OSError as error:
        raise WorkerError(
            f"The function has answered, but its result could not be kept on its way to the object store: {error}. "
            f"Make room in the temporary folder of this machine (TMPDIR)."
        ) from error
