"""For whoever receives webhooks: whether a message really comes from the platform. Needs the standard library only."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import time
from collections.abc import Mapping
from typing import Any, Final

from brinery.errors import InvalidRequestError, SignatureError

TOLERANCE_SECONDS: Final = 300.0
_PREFIX: Final = "whsec_"
_VERSION: Final = "v1"
_TIMESTAMP: Final = re.compile(r"[0-9]{1,12}")


def verify(
    body: bytes, headers: Mapping[str, str], secret: str, tolerance_seconds: float = TOLERANCE_SECONDS
) -> dict[str, Any]:
    """Check a webhook's signature and return its message.

    A message may come more than once: remember the header ``webhook-id``, the same on every try, and ignore what you
    have seen.

    Args:
        body: The request's body, as it came: not decoded, not parsed.
        headers: The request's headers, under names of any case.
        secret: What ``brinery webhooks secret`` prints, ``whsec_…``.
        tolerance_seconds: How far the message's time may be from this machine's, both ways; ≥ 0.

    Returns:
        ``{"type": "task.succeeded" | "task.failed" | "task.cancelled" | "task.expired", "timestamp", "data"}``, where
        ``data`` is the task as ``GET /v1/tasks/{id}`` shows it.

    Raises:
        SignatureError: A header is missing, no signature fits, or the time is too far away.
        InvalidRequestError: `secret` is not one.
        TypeError: `body` is text: a web framework has decoded it, and the signature is that of its bytes.

    Source: Standard Webhooks 1.0, "Signature scheme" and "Verifying webhook authenticity".
    """
    if not isinstance(body, bytes | bytearray):
        raise TypeError(
            f"body is the request's bytes as they came, such as Flask's request.get_data(), not {type(body).__name__}."
        )
    key = _key(secret)
    found = {name.lower(): value for name, value in headers.items()}
    message_id, timestamp, signatures = (found.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature"))
    if not (message_id and timestamp and signatures):
        raise SignatureError("A header webhook-id, webhook-timestamp or webhook-signature is missing.")
    signed = f"{message_id}.{timestamp}.".encode() + body
    wanted = base64.b64encode(hmac.digest(key, signed, hashlib.sha256))
    # Every signature is compared: how long this takes says nothing about which of them fits.
    fits = [_same(wanted, each) for each in signatures.split(" ")]
    if not any(fits):
        raise SignatureError
    if not _TIMESTAMP.fullmatch(timestamp) or abs(time.time() - int(timestamp)) > tolerance_seconds:
        raise SignatureError(
            f"The message's time is more than {tolerance_seconds:g} s from this machine's; is its clock right?"
        )
    try:
        message = json.loads(body)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise SignatureError("The message is signed, but it is no JSON object.")
    return message


def _same(wanted: bytes, given: str) -> bool:
    version, _, signature = given.partition(",")
    return hmac.compare_digest(wanted, signature.encode()) and version == _VERSION


def _key(secret: str) -> bytes:
    text = secret.strip()
    try:
        key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key or not text.startswith(_PREFIX):
        raise InvalidRequestError("This is no webhook secret; copy the line that `brinery webhooks secret` prints.")
    return key
