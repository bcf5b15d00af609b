"""What a worker's answer means: a result to be stored, an end, or another attempt."""

from __future__ import annotations

from http import HTTPStatus

from brinery.errors import (
    UpstreamTimeoutError,
    WorkerBusyError,
    WorkerError,
    error_from_worker,
)
from brinery_platform.forwarder.outcomes import Again, Settled, bounded, failed
from brinery_platform.forwarder.payloads import Patient, store_result
from brinery_platform.forwarder.retries import matching_entry
from brinery_platform.forwarder.worker_calls import MAX_ERROR_BYTES, Reply
from brinery_platform.objects import Objects
from brinery_platform.transitions import Claim


def read_answer(claim: Claim, reply: Reply, objects: Objects, patient: Patient) -> Settled | Again:
    """Read an answer to its end and say what comes of the attempt; a large result is in the store by then.

    Args:
        claim: The attempt.
        reply: The answer, whose body was not read yet.
        objects: Where large results go.
        patient: Waits for the store.

    Raises:
        WorkerBusyError: The worker did not take the request.
        WorkerError: It broke, or its result could not be kept here.
        PayloadTooLargeError: The result is larger than one may be.
    """
    if HTTPStatus.OK <= reply.status < HTTPStatus.MULTIPLE_CHOICES:
        return store_result(claim, reply, objects, patient)
    body = reply.read_up_to(MAX_ERROR_BYTES)
    if reply.status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        raise WorkerBusyError
    if reply.status == HTTPStatus.BAD_GATEWAY:
        raise WorkerError(f"The worker answered with status {reply.status}; see its logs.")
    error = bounded(error_from_worker(body, status=reply.status))
    if reply.status == HTTPStatus.GATEWAY_TIMEOUT:
        return Again(error=UpstreamTimeoutError(error.message, request_id=claim.request_id))
    entry = matching_entry(claim.task.retry_for, error, reply.status)
    if entry is not None:
        return Again(error=error, reason=f"retry_for {entry}")
    return failed(claim, error)
