"""The HTTP client of the native API: one `Client` per gateway and key, its connections pooled.

A call is described as a `routes.Request` and sent by `Client.send` or `Client.asend`; that is all that sync and async
differ in.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies
from weakref import WeakKeyDictionary

import httpx
from tenacity import AsyncRetrying, Retrying

from brinery.config import check_url, read_config
from brinery.connections import Connections
from brinery.routes import (
    READ_TIMEOUT_SECONDS,
    UPLOAD_TIMEOUT_SECONDS,
    Parameter,
    Request,
    endpoint_path,
    task_path,
    task_request,
)
from brinery.spec import CONTENT_BUNDLE, CONTENT_EVENTS, CONTENT_JSON
from brinery.sse import EventReader, lines, server_sent_events
from brinery.transport import (
    ASYNC_CONNECTIONS,
    Response,
    async_pool_arguments,
    checked,
    pool_arguments,
    retry_arguments,
    translated,
)

BRIEF_REQUESTS: Final = 16
"""How many requests that are answered at once an event loop sends side by side."""
MAX_PAGE: Final = 1000
"""How many tasks one answer may list."""
STREAM_SILENCE_SECONDS: Final = 45.0
"""How long a stream may be silent before its connection counts as lost; the gateway says something every 15 s."""


class _Session:
    """An event loop's async client, how many use it now, and a queue for its connections.

    The queue is ours because httpx's looks at every waiting request whenever any of them moves.
    """

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.borrowers = 0
        self.connections = asyncio.Semaphore(ASYNC_CONNECTIONS)
        self.brief_ones = asyncio.Semaphore(BRIEF_REQUESTS)


class Client:
    """One gateway and the key to it. Threads may share it, and a forked child gets connections of its own.

    Args:
        url: Base URL of the gateway.
        api_key: Sent as ``Authorization: Bearer``.
    """

    def __init__(self, url: str, api_key: str) -> None:
        self.url = check_url(url)
        self._headers = {"Authorization": f"Bearer {api_key}", "Accept": CONTENT_JSON}
        # A proxy from the environment is for the world outside, never for this machine. Only httpx knows proxies.
        self._outside = urlsplit(self.url).hostname not in {"127.0.0.1", "localhost", "::1"}
        self._by_proxy = self._outside and any(name != "no" for name in getproxies())
        # By process id: a connection must never be used on both sides of a fork, and `setdefault` needs no lock that
        # a fork could leave held.
        self._pools: dict[int, httpx.Client] = {}
        self._connections: dict[int, Connections] = {}
        self._sessions: WeakKeyDictionary[asyncio.AbstractEventLoop, _Session] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        pid = os.getpid()
        for opened in (self._pools.pop(pid, None), self._connections.pop(pid, None)):
            if opened is not None:
                opened.close()

    # ------------------------------------------------------------------------------------------------- transport
    def send(self, request: Request) -> Response:
        """Send and return the whole answer.

        Raises:
            UnavailableError: Nothing answers, or the connection was lost on the way.
            BrineryError: What the platform answered, as its own class.
        """
        if not self._by_proxy:
            return checked(self._direct().send(request))
        with translated(self.url):
            return checked(self._pool().request(**request.arguments()))

    async def asend(self, request: Request) -> httpx.Response:
        """Do what `send` does, on the running event loop."""
        async with self._session(brief=request.brief) as session:
            with translated(self.url):
                response = await session.request(**request.arguments())
        return checked(response)

    def send_patiently(self, request: Callable[[], Request], patience_seconds: float) -> Response:
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

    @asynccontextmanager
    async def aopen(self, request: Request) -> AsyncIterator[AsyncIterator[bytes]]:
        """Do what `open` does, on the running event loop."""
        async with self._session() as session:
            with translated(self.url):
                async with session.stream(**request.arguments()) as response:
                    if response.status_code >= 400:
                        await response.aread()
                    yield checked(response).aiter_bytes()

    def _direct(self) -> Connections:
        pid = os.getpid()
        if (connections := self._connections.get(pid)) is None:
            connections = self._connections.setdefault(pid, Connections(self.url, self._headers))
        return connections

    def _pool(self) -> httpx.Client:
        pid = os.getpid()
        if (pool := self._pools.get(pid)) is None:
            pool = self._pools.setdefault(
                pid, httpx.Client(**pool_arguments(self.url, by_proxy=self._by_proxy), **self._arguments())
            )
        return pool

    @asynccontextmanager
    async def _session(self, *, brief: bool = False) -> AsyncIterator[httpx.AsyncClient]:
        """Lend the loop's one async client; the last borrower closes it, so that nothing outlives the loop."""
        loop = asyncio.get_running_loop()
        if (session := self._sessions.get(loop)) is None:
            client = httpx.AsyncClient(**async_pool_arguments(self.url, by_proxy=self._by_proxy), **self._arguments())
            session = self._sessions[loop] = _Session(client)
        session.borrowers += 1
        try:
            async with session.brief_ones if brief else nullcontext(), session.connections:
                yield session.client
        finally:
            session.borrowers -= 1
            if session.borrowers == 0:
                del self._sessions[loop]
                await session.client.aclose()

    def _arguments(self) -> dict[str, Any]:
        return {"base_url": self.url, "headers": self._headers, "trust_env": self._outside}

    def _json(self, method: str, path: str, body: Any = None, **params: Parameter) -> Any:
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
            for line in lines(chunks):
                yield line.decode(errors="replace")

    def task(self, task_id: str, *, wait_seconds: float = 0.0) -> dict[str, Any]:
        """Return a task's record, at the latest after `wait_seconds` (at most 60)."""
        return dict(self.send(task_request(task_id, wait_seconds=wait_seconds)).json())

    def task_page(
        self,
        *,
        endpoint: str | None = None,
        status: str | Sequence[str] | None = None,
        dead: bool = False,
        cursor: str | None = None,
        limit: int = 100,
    ) -> dict[str, Any]:
        """Return one page of tasks, the last submitted first.

        Args:
            endpoint: Only this endpoint's.
            status: Only those in this status, or in one of these.
            dead: Only dead letters: those that the platform gave up.
            cursor: Where the page before this one ended; None begins.
            limit: 1 to 1,000.

        Returns:
            ``{"tasks": [record, …], "cursor": text | None}``; without a cursor there are no more.
        """
        chosen = {"endpoint": endpoint, "status": status, "dead": True if dead else None, "cursor": cursor}
        return dict(self._json("GET", "/v1/tasks", limit=limit, **chosen))

    def tasks(
        self,
        *,
        endpoint: str | None = None,
        status: str | Sequence[str] | None = None,
        dead: bool = False,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yield tasks, the last submitted first, page by page; see `task_page`. `limit` ends it after so many."""
        left = math.inf if limit is None else limit
        while left > 0:
            size = int(min(left, MAX_PAGE))
            page = self.task_page(endpoint=endpoint, status=status, dead=dead, cursor=cursor, limit=size)
            yield from page["tasks"]
            left, cursor = left - len(page["tasks"]), page["cursor"]
            if cursor is None:
                return

    def task_attempts(self, task_id: str) -> list[dict[str, Any]]:
        """Return a task's attempts that did not succeed, oldest first.

        Returns:
            ``{"attempt", "charge", "started_at", "ended_at", "reason", "worker_id", "error", "log_tail"}`` each.
        """
        return list(self._json("GET", task_path(task_id, "attempts"))["attempts"])

    def task_input(self, task_id: str) -> tuple[str, bytes]:
        """Return the content type and the bytes that a task was given."""
        response = self.send(
            Request(method="GET", path=task_path(task_id, "input"), read_timeout_seconds=UPLOAD_TIMEOUT_SECONDS)
        )
        return response.headers.get("content-type", ""), response.content

    async def task_events(self, task_ids: list[str]) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """Follow up to 10,000 tasks over one connection, on the running event loop.

        Yields:
            ``("open", {})`` at first, then ``("message", record)`` as each task becomes final, and
            ``("missing", {"id"})`` for those that there are not.
        """
        request = Request(
            method="POST",
            path="/v1/tasks/events",
            headers={"Accept": CONTENT_EVENTS, "Content-Type": CONTENT_JSON},
            content=json.dumps({"ids": task_ids}, separators=(",", ":")).encode(),
            read_timeout_seconds=STREAM_SILENCE_SECONDS,
        )
        reader = EventReader()
        async with self.aopen(request) as pieces:
            yield "open", {}
            async for piece in pieces:
                for event, data in reader.feed(piece):
                    yield event, json.loads(data)

    def cancel(self, task_id: str) -> dict[str, Any]:
        """Cancel a task and return its record as it stands then."""
        return dict(self._json("DELETE", task_path(task_id)))

    async def acancel(self, task_id: str) -> dict[str, Any]:
        """Do what `cancel` does, on the running event loop."""
        return dict((await self.asend(Request(method="DELETE", path=task_path(task_id), brief=True))).json())

    def requeue(self, task_id: str) -> dict[str, Any]:
        """Queue a failed task again, with all its attempts, and return its record.

        Raises:
            ConflictError: It has not failed.
        """
        return dict(self._json("POST", task_path(task_id, "requeue")))

    def drop(self, task_id: str) -> None:
        """Delete a final task with its input and result, now instead of at the end of its result's life.

        Raises:
            ConflictError: It is not final; cancel it first.
        """
        self._json("POST", task_path(task_id, "drop"))


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
