"""One try of a webhook: the signed message, and the HTTP request that carries it.

The form is that of Standard Webhooks: headers ``webhook-id``, ``webhook-timestamp`` and ``webhook-signature``.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ssl
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final

import httpcore
import httpx
import orjson

from brinery.spec import CONTENT_JSON, Task
from brinery_platform.addresses import AddressPolicy, Network, PinnedBackend, Resolve, Resolver

CONNECT_SECONDS: Final = 5.0
WHOLE_SECONDS: Final = 15.0
READ_BYTES: Final = 4096
READ_SECONDS: Final = 2.0
"""How much of a receiver's answer is read, and for how long; the connection is closed after it."""
SHOWN_CHARS: Final = 200
MAX_ERROR_CHARS: Final = 500
SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - what secrets begin with, and none itself


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one try ended.

    Args:
        status: HTTP status of the answer, None where none came.
        error: Why the message counts as not delivered, short and printable; None if it was.
        hopeless: Whether another try makes no sense.
    """

    status: int | None
    error: str | None
    hopeless: bool = False


def message(task: Task, view: Mapping[str, Any]) -> bytes:
    """Return the body that tells of a task's end.

    Args:
        task: A final one.
        view: The task as ``GET /v1/tasks/{id}`` shows it.

    Returns:
        JSON: ``type`` (``task.succeeded`` and so on), ``timestamp`` (of the end, ISO 8601, UTC) and ``data``.
    """
    ended = datetime.fromtimestamp(task.finished_at or 0.0, UTC).isoformat()
    return orjson.dumps({"type": f"task.{task.status}", "timestamp": ended, "data": view})


def message_id(task: Task) -> str:
    """Return what receivers know a message by: the same on every try, another one when a task ends once more."""
    return f"{task.id}.{(task.finished_at or 0.0) * 1000:.0f}"


def headers(identity: str, body: bytes, secret: bytes, at: float) -> dict[str, str]:
    """Return the headers that let a receiver know the message, and who sent it.

    Args:
        identity: From `message_id`.
        body: As it is sent.
        secret: The owner's, see `brinery_platform.signing.webhook_secret`.
        at: Time of this try, seconds since the epoch.

    Source: Standard Webhooks 1.0, "Signature scheme".
    """
    timestamp = str(int(at))
    digest = hmac.digest(secret, f"{identity}.{timestamp}.".encode() + body, hashlib.sha256)
    return {
        "Content-Type": CONTENT_JSON,
        "User-Agent": "Brinery-Webhooks",
        "webhook-id": identity,
        "webhook-timestamp": timestamp,
        "webhook-signature": "v1," + base64.b64encode(digest).decode(),
    }


def secret_text(secret: bytes) -> str:
    """Return a secret as people copy it."""
    return SECRET_PREFIX + base64.b64encode(secret).decode()


class Sender:
    """Sends messages: each over a connection of its own, to an address that was checked for it.

    No proxy and no ``.netrc`` of the environment is used, no redirect followed, no cookie kept.

    Args:
        allowed: Networks that may be reached although they are not global.
        resolve: Finds a host's addresses; None asks the system.
        trust: What certificates are checked against; None takes those that httpx trusts.
        connect_seconds: Limit of looking up and connecting, and of TLS.
        whole_seconds: Limit of the whole try.
    """

    def __init__(
        self,
        allowed: Iterable[Network] = (),
        *,
        resolve: Resolve | None = None,
        trust: ssl.SSLContext | None = None,
        connect_seconds: float = CONNECT_SECONDS,
        whole_seconds: float = WHOLE_SECONDS,
    ) -> None:
        self._system = Resolver()
        self._backend = PinnedBackend(AddressPolicy(allowed), resolve or self._system)
        self._given_trust = trust
        self._connect_seconds = connect_seconds
        self.whole_seconds = whole_seconds

    @cached_property
    def _trust(self) -> ssl.SSLContext:
        return self._given_trust or httpx.create_ssl_context()

    def close(self) -> None:
        """Let the threads end that look up names."""
        self._system.close()

    async def send(self, webhook: Mapping[str, str], head: Mapping[str, str], body: bytes) -> Outcome:
        """POST `body` once.

        Args:
            webhook: `brinery.spec.Webhook` as JSON.
            head: From `headers`.
            body: From `message`.

        Returns:
            How it ended; whatever a receiver does, nothing is raised.
        """
        username, password = webhook.get("username", ""), webhook.get("password", "")
        given = dict(head)
        if username:
            credentials = base64.b64encode(f"{username}:{password}".encode()).decode()
            given["Authorization"] = f"Basic {credentials}"
        try:
            async with asyncio.timeout(self.whole_seconds):
                status, text, location = await self._post(httpx.URL(webhook["url"]), given, body)
        except TimeoutError:
            return Outcome(status=None, error=f"There was no whole answer within {self.whole_seconds:g} s.")
        except (httpx.InvalidURL, httpcore.UnsupportedProtocol):
            return Outcome(status=None, error="The URL is not one that can be called.")
        except httpcore.TimeoutException as error:
            return Outcome(status=None, error=printable(str(error)) or "It did not answer in time.")
        except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError, OSError) as error:
            return Outcome(status=None, error=printable(f"{type(error).__name__}: {error}"))
        if username:  # some receivers answer with the request that they got: what they say may hold the password
            text = location = ""
        return _judged(status, text, location)

    async def _post(self, url: httpx.URL, given: Mapping[str, str], body: bytes) -> tuple[int, str, str]:
        """Return an answer's status, the beginning of its text, and where it points to."""
        if url.scheme not in {"http", "https"} or not url.raw_host:
            raise httpcore.UnsupportedProtocol
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        secure = url.scheme == "https"
        connection = httpcore.AsyncHTTPConnection(
            httpcore.Origin(url.raw_scheme, url.raw_host, url.port or (443 if secure else 80)),
            ssl_context=self._trust if secure else None,
            network_backend=self._backend,
        )
        lines = [
            (b"Host", url.netloc),
            (b"Content-Length", str(len(body)).encode()),
            (b"Accept-Encoding", b"identity"),
            (b"Connection", b"close"),
            *((name.encode(), value.encode()) for name, value in given.items()),
        ]
        limits = {"connect": self._connect_seconds, "read": self.whole_seconds, "write": self.whole_seconds}
        async with (
            connection,
            connection.stream("POST", target, headers=lines, content=body, extensions={"timeout": limits}) as answer,
        ):
            text = b"" if 200 <= answer.status < 400 else await _beginning(answer)
            location = next((value for name, value in answer.headers if name.lower() == b"location"), b"")
            return answer.status, printable(text.decode(errors="replace"), SHOWN_CHARS), location.decode("latin-1")


def _judged(status: int, text: str, location: str) -> Outcome:
    if 200 <= status < 300:
        return Outcome(status=status, error=None)
    if 300 <= status < 400:
        where = f" ({location})" if location else ""
        text = f"redirects are not followed; give the final address{where}."
    return Outcome(status=status, error=printable(f"HTTP {status}: {text}".rstrip(": ")))


async def _beginning(answer: httpcore.Response) -> bytes:
    """Return the first bytes of an answer's body; the status says enough where they do not come."""
    read = bytearray()
    with suppress(TimeoutError, httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError):
        async with asyncio.timeout(READ_SECONDS):
            async for piece in answer.aiter_stream():
                read += piece[: READ_BYTES - len(read)]
                if len(read) >= READ_BYTES:
                    break
    return bytes(read)


def printable(text: str, limit: int = MAX_ERROR_CHARS) -> str:
    """Return `text` on one line, without what is not printable, cut to `limit` characters."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
