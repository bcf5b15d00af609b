"""The HTTP client of the native API: one `Client` per gateway and key, its connections pooled.

A call is described as a `Request` and sent by `Client.send` or `Client.asend`; that is all that sync and async differ
in.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote, urlsplit
from weakref import WeakKeyDictionary

import httpx
from tenacity import AsyncRetrying, Retrying

from brinery.config import check_url, read_config
from brinery.spec import CONTENT_BUNDLE, CONTENT_EVENTS, CONTENT_JSON, MAX_WAIT_SECONDS
from brinery.transport import async_transport, checked, retry_arguments, translated, transport

CONNECT_TIMEOUT_SECONDS: Final = 5.0
READ_TIMEOUT_SECONDS: Final = 60.0
"""For everything that the platform answers by itself, without waiting for a worker."""
UPLOAD_TIMEOUT_SECONDS: Final = 600.0
POLL_SLACK_SECONDS: Final = 5.0
"""How long an answer to a long-poll may be late before the connection counts as lost."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One HTTP request of the native API.

    Args:
        method: HTTP method.
        path: Below the base URL, quoted.
        params: Query parameters; None values are left out.
        headers: On top of the client's own.
        content: Body.
        read_timeout_seconds: Longest silence of the server; None waits as long as the connection lives.
    """

    method: str
    path: str
    params: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    read_timeout_seconds: float | None = READ_TIMEOUT_SECONDS

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of ``httpx``'s ``request`` and ``stream``."""
        return {
            "method": self.method,
            "url": self.path,
            "params": {name: value for name, value in self.params.items() if value is not None},
            "headers": dict(self.headers),
            "content": self.content,
            "timeout": httpx.Timeout(
                self.read_timeout_seconds,
                connect=CONNECT_TIMEOUT_SECONDS,
                write=UPLOAD_TIMEOUT_SECONDS,
                pool=None,
            ),
        }


def endpoint_path(name: str, *parts: str) -> str:
    """Return the path of an endpoint, of another owner's too (``owner/name``), and of what lies below it."""
    return "/".join(["/v1/endpoints", quote(name, safe="/"), *(quote(part, safe="") for part in parts)])


def task_request(task_id: str, *, wait_seconds: float = 0.0) -> Request:
    """Return the request for a task's record, answered when it is final or after `wait_seconds` (at most 60)."""
    wait = max(0.0, min(wait_seconds, MAX_WAIT_SECONDS))
    return Request(
        method="GET",
        path=f"/v1/tasks/{quote(task_id, safe='')}",
        params={"wait_seconds": round(wait, 3)},
        read_timeout_seconds=wait + POLL_SLACK_SECONDS,
    )


def result_request(task_id: str) -> Request:
    """Return the request for the bytes of a finished task's result."""
    return Request(method="GET", path=f"/v1/tasks/{quote(task_id, safe='')}/result")


class _Session:
    """An event loop's async client and how many use it now."""

    def __init__(self) -> None:
        self.client: httpx.AsyncClient | None = None
        self.borrowers = 0


class Client:
    """One gateway and the key to it. Threads may share it, and a forked child gets connections of its own.

    Args:
        url: Base URL of the gateway.
        api_key: Sent as ``Authorization: Bearer``.
    """

    def __init__(self, url: str, api_key: str) -> None:
        self.url = check_url(url)
        self._api_key = api_key
        # By process id: a connection must never be used on both sides of a fork, and `setdefault` needs no lock that
        # a fork could leave held.
        self._pools: dict[int, httpx.Client] = {}
        self._sessions: WeakKeyDictionary[asyncio.AbstractEventLoop, _Session] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        pool = self._pools.pop(os.getpid(), None)
        if pool is not None:
            pool.close()

    # ------------------------------------------------------------------------------------------------- transport
    def send(self, request: Request) -> httpx.Response:
        """Send and return the whole answer.

        Raises:
            UnavailableError: Nothing answers, or the connection was lost on the way.
            BrineryError: What the platform answered, as its own class.
        """
        with translated(self.url):
            response = self._pool().request(**request.arguments())
        return checked(response)

    async def asend(self, request: Request) -> httpx.Response:
        """Do what `send` does, on the running event loop."""
        async with self._session() as session:
            with translated(self.url):
                response = await session.request(**request.arguments())
        return checked(response)

    def send_patiently(self, request: Callable[[], Request], patience_seconds: float) -> httpx.Response:
        """Send what can be repeated without harm, again and again while the platform is away.

        Args:
            request: Called before each try.
            patience_seconds: When to give up; the first try is always made.

        Raises:
            UnavailableError: The platform was away all the time.
            BrineryError: What the platform answered.
        """
        for attempt in Retrying(**retry_arguments(patience_seconds)):
            with attempt:
                response = self.send(request())
        return response

    async def asend_patiently(self, request: Callable[[], Request], patience_seconds: float) -> httpx.Response:
        """Do what `send_patiently` does, on the running event loop."""
        async for attempt in AsyncRetrying(sleep=asyncio.sleep, **retry_arguments(patience_seconds)):
            with attempt:
                response = await self.asend(request())
        return response

    @contextmanager
    def open(self, request: Request) -> Iterator[Iterator[bytes]]:
        """Send, check the status, and give the body in pieces as they come.

        Raises:
            BrineryError: As `send`; while the body is read, too.
        """
        with translated(self.url), self._pool().stream(**request.arguments()) as response:
            if response.status_code >= 400:
                response.read()
            yield checked(response).iter_bytes()

    def _pool(self) -> httpx.Client:
        pid = os.getpid()
        if (pool := self._pools.get(pid)) is None:
            pool = self._pools.setdefault(pid, httpx.Client(transport=transport(self.url), **self._arguments()))
        return pool

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[httpx.AsyncClient]:
        """Lend the loop's one async client; the last borrower closes it, so that nothing outlives the loop."""
        session = self._sessions.setdefault(asyncio.get_running_loop(), _Session())
        if session.client is None:
            session.client = httpx.AsyncClient(transport=async_transport(self.url), **self._arguments())
        client = session.client
        session.borrowers += 1
        try:
            yield client
        finally:
            session.borrowers -= 1
            if session.borrowers == 0:
                session.client = None
                await client.aclose()

    def _arguments(self) -> dict[str, Any]:
        return {
            "base_url": self.url,
            "headers": {"Authorization": f"Bearer {self._api_key}", "Accept": CONTENT_JSON},
            # A proxy from the environment is for the world outside, never for this machine.
            "trust_env": urlsplit(self.url).hostname not in {"127.0.0.1", "localhost", "::1"},
        }

    def _json(self, method: str, path: str, body: Any = None, **params: str | float | bool | None) -> Any:
        headers = {} if body is None else {"Content-Type": CONTENT_JSON}
        content = None if body is None else json.dumps(body).encode()
        request = Request(method=method, path=path, params=params, headers=headers, content=content)
        return self.send(request).json()

    # ----------------------------------------------------------------------------------------------------- verbs
    def info(self) -> dict[str, Any]:
        """Return ``{"version", "python": [minor, …], "cloudpickle", "runtime"}`` of the platform."""
        return dict(self._json("GET", "/v1/info"))

    def upload_bundle(self, data: bytes) -> dict[str, Any]:
        """Upload a bundle's zip and return ``{"id", "name", "sha256", "manifest", …}``."""
        response = self.send(
            Request(
                method="POST",
                path="/v1/bundles",
                headers={"Content-Type": CONTENT_BUNDLE},
                content=data,
                read_timeout_seconds=UPLOAD_TIMEOUT_SECONDS,
            )
        )
        return dict(response.json())

    def put_endpoint(self, name: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Create or change an endpoint; `settings` are `EndpointSpec`'s fields without the name."""
        return dict(self._json("PUT", endpoint_path(name), settings))

    def endpoints(self) -> list[dict[str, Any]]:
        """Return all endpoints of the key's owner."""
        return list(self._json("GET", "/v1/endpoints")["endpoints"])

    def endpoint(self, name: str) -> dict[str, Any]:
        """Return one endpoint: ``{"id", "name", "status", "reason", "serving_version", "spec", "workers", …}``."""
        return dict(self._json("GET", endpoint_path(name)))

    def delete_endpoint(self, name: str) -> None:
        """Delete an endpoint with all its versions."""
        self.send(Request(method="DELETE", path=endpoint_path(name)))

    def versions(self, name: str) -> list[dict[str, Any]]:
        """Return an endpoint's versions, ``{"number", "status", "reason", "created_at", "spec"}`` each."""
        return list(self._json("GET", endpoint_path(name, "versions"))["versions"])

    def rollback(self, name: str, version: int) -> dict[str, Any]:
        """Serve an earlier version again and return the endpoint."""
        return dict(self._json("POST", endpoint_path(name, "rollback"), {"version": version}))

    def restart(self, name: str) -> None:
        """Replace every worker of an endpoint, one after the other."""
        self.send(Request(method="POST", path=endpoint_path(name, "restart")))

    def events(self, name: str, *, version: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Follow a version's deployment.

        Yields:
            ``("message", {"at", "version", "kind", "text"})`` for each event, and in the end
            ``("done", {"status", "reason"})``.
        """
        request = Request(
            method="GET",
            path=endpoint_path(name, "events"),
            params={"follow": "true", "version": version},
            headers={"Accept": CONTENT_EVENTS},
            read_timeout_seconds=None,
        )
        with self.open(request) as chunks:
            for event, data in server_sent_events(chunks):
                yield event, json.loads(data)

    def logs(self, name: str, *, tail: int = 200, follow: bool = False) -> Iterator[str]:
        """Yield the last `tail` lines of the workers' output, then with `follow` each new one."""
        request = Request(
            method="GET",
            path=endpoint_path(name, "logs"),
            params={"tail": tail, "follow": "true" if follow else "false"},
            headers={"Accept": "text/plain"},
            read_timeout_seconds=None if follow else READ_TIMEOUT_SECONDS,
        )
        with self.open(request) as chunks:
            for line in _lines(chunks):
                yield line.decode(errors="replace")

    def task(self, task_id: str, *, wait_seconds: float = 0.0) -> dict[str, Any]:
        """Return a task's record, at the latest after `wait_seconds` (at most 60)."""
        return dict(self.send(task_request(task_id, wait_seconds=wait_seconds)).json())

    def tasks(self, *, endpoint: str | None = None, status: str | None = None) -> list[dict[str, Any]]:
        """Return tasks, of one endpoint or in one status if given."""
        return list(self._json("GET", "/v1/tasks", endpoint=endpoint, status=status)["tasks"])

    def cancel(self, task_id: str) -> dict[str, Any]:
        """Cancel a task and return its record as it stands then."""
        return dict(self._json("DELETE", f"/v1/tasks/{quote(task_id, safe='')}"))


def default_client() -> Client:
    """Return the client that the environment and the profile name now.

    Raises:
        AuthenticationError: No key is known; the text says where to get one.
    """
    config = read_config()
    return _client(config.url, config.api_key)


@lru_cache(maxsize=8)
def _client(url: str, api_key: str) -> Client:
    return Client(url, api_key)


# ------------------------------------------------------------------------------------------------------------ streams
def server_sent_events(chunks: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """Yield ``(event, data)`` of a stream; an event without a name is a ``message``.

    Source: WHATWG HTML, 9.2.6 "Interpreting an event stream".
    """
    event, data = "message", list[str]()
    for raw in _lines(chunks):
        line = raw.decode()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield event, "\n".join(data)
            event, data = "message", []
        elif name == "event":
            event = value
        elif name == "data":
            data.append(value)


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Split at line feeds alone: `str.splitlines` would also split at U+2028 and others that JSON may contain."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r")
    if rest:
        yield rest
