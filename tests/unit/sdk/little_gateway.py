"""A gateway in one file that speaks the native API over real sockets, and can fail in the ways that real ones do."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import cloudpickle

from brinery.errors import (
    AuthenticationError,
    BrineryError,
    ConflictError,
    NotFoundError,
    OverloadedError,
    RemoteError,
)
from brinery.spec import CONTENT_EVENTS, CONTENT_JSON, CONTENT_PICKLE

KEY = "brn_little"
PYTHON = "3.11"


class LittleGateway:
    """A server on a port of its own, and all that it knows.

    Endpoints are answered by `functions`: name → callable of the JSON arguments. Tasks run when they are accepted, or
    when the test says so with `finish` where their endpoint is in `held`.
    """

    def __init__(self) -> None:
        self.functions: dict[str, Callable[..., Any]] = {}
        self.held: set[str] = set()
        self.tasks: dict[str, dict[str, Any]] = {}
        self.results: dict[str, tuple[str, bytes]] = {}
        self.bundles: dict[str, bytes] = {}
        self.endpoints: dict[str, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.outcome = {"status": "ready", "reason": ""}
        self.info = {"version": "0", "python": [PYTHON], "cloudpickle": cloudpickle.__version__, "runtime": "process"}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.most_open: int | None = None
        """How many tasks may be open; a submission above it is answered with 429."""
        self.retry_after_seconds = 0.05
        self.refusals = 0
        self.drops: list[str] = []
        """For each entry, one request whose ``METHOD /path`` begins with it is cut off before it is answered."""
        self.drops_after: list[str] = []
        """The same, but what was asked for happens first."""
        self.drops_waiting: list[str] = []
        """The same, in the middle of a long-poll or of a stream of tasks; there, once for each entry."""
        self.dead: list[str] = []
        self.attempts: dict[str, list[dict[str, Any]]] = {}
        self.inputs: dict[str, tuple[str, bytes]] = {}
        self.refused = ""
        """A path that is answered with 409."""
        self.following: list[list[str]] = []
        """The ids of each stream of tasks that was asked for."""
        self.streams = 0
        """How many of these are open now."""
        self.changed = threading.Condition()
        self.port = 0
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._server = _Server(self.port, self)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.cut_connections()
            self._server = None

    def finish(self, task_id: str, **changes: Any) -> None:
        with self.changed:
            self.tasks[task_id].update(changes)
            self.changed.notify_all()

    def succeed(self, task_id: str, result: Any) -> None:
        self.finish(task_id, status="succeeded", result=result, result_type=CONTENT_JSON, result_inline=True)

    def run(self, task: dict[str, Any], arguments: Any) -> None:
        try:
            self.succeed(task["id"], self.functions[task["endpoint"]](**arguments))
        except BrineryError as error:
            self.finish(task["id"], status="failed", error=error.to_json()["error"])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, port: int, gateway: LittleGateway) -> None:
        self.gateway = gateway
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def cut_connections(self) -> None:
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: cutting connections is this server's work."""


class _CutError(Exception):
    """The connection is to be cut."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def handle_any(self) -> None:
        gateway, parts = self.server.gateway, urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(parts.path)
        query = {name: ",".join(values) for name, values in parse_qs(parts.query).items()}
        gateway.requests.append((self.command, path, dict(self.headers.items())))
        try:
            status, kind, content = self.checked_answer(gateway, path, query, body)
        except _CutError:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        except BrineryError as error:
            status, kind, content = error.status, CONTENT_JSON, json.dumps(error.to_json()).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if isinstance(content, bytes):
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        else:
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            try:
                for piece in content:
                    self.wfile.write(piece)
                    self.wfile.flush()
            except _CutError:
                self.connection.shutdown(socket.SHUT_RDWR)
            finally:
                content.close()

    do_GET = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815 - the standard library's names

    def _cut(self, entries: list[str], path: str) -> bool:
        for entry in entries:
            if f"{self.command} {path}".startswith(entry):
                entries.remove(entry)
                return True
        return False

    def checked_answer(
        self, gateway: LittleGateway, path: str, query: dict[str, str], body: bytes
    ) -> tuple[int, str, bytes | Iterator[bytes]]:
        if self._cut(gateway.drops, path):
            raise _CutError
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            raise AuthenticationError
        if path == gateway.refused:
            raise ConflictError("Refused.")
        answer = self.answer(gateway, path, query, body)
        if self._cut(gateway.drops_after, path):
            raise _CutError
        return answer

    def answer(
        self, gateway: LittleGateway, path: str, query: dict[str, str], body: bytes
    ) -> tuple[int, str, bytes | Iterator[bytes]]:
        match self.command, path.strip("/").split("/")[1:]:
            case "GET", ["info"]:
                return _json(200, gateway.info)
            case "POST", ["bundles"]:
                manifest = json.loads(zipfile.ZipFile(BytesIO(body)).read("manifest.json"))
                bundle_id = f"bun_{len(gateway.bundles)}"
                gateway.bundles[bundle_id] = body
                return _json(201, {"id": bundle_id, "manifest": manifest})
            case "GET", ["endpoints"]:
                return _json(200, {"endpoints": list(gateway.endpoints.values())})
            case "PUT", ["endpoints", name]:
                return _json(201, _endpoint(gateway, name, json.loads(body)))
            case "GET", ["endpoints", _, "events"]:
                return 200, CONTENT_EVENTS, _events(gateway)
            case "GET", ["endpoints", name]:
                return _json(200, _known(gateway.endpoints, name))
            case "GET", ["endpoints", _, "versions"]:
                return _json(200, {"versions": []})
            case "POST", ["endpoints", *name, "predict"]:
                return self.predict(gateway, "/".join(name), body)
            case "PUT", ["endpoints", name, "tasks", task_id]:
                return _json(202, self.accept(gateway, name, task_id, body))
            case "GET", ["tasks"]:
                return _json(200, _page(gateway, query))
            case "POST", ["tasks", "events"]:
                return 200, CONTENT_EVENTS, self.follow(gateway, json.loads(body)["ids"])
            case "GET", ["tasks", task_id, "attempts"]:
                return _json(200, {"attempts": gateway.attempts.get(task_id, [])})
            case "GET", ["tasks", task_id, "input"]:
                return 200, *_known(gateway.inputs, task_id)
            case "POST", ["tasks", task_id, "requeue" | "drop" as verb]:
                return _json(202, _bury(gateway, task_id, verb))
            case "GET", ["tasks", task_id, "result"]:
                kind, content = gateway.results[task_id]
                return 200, kind, content
            case "GET", ["tasks", task_id]:
                return _json(200, self.wait(gateway, task_id, float(query.get("wait_seconds", 0))))
            case "DELETE", ["tasks", task_id]:
                task = _known(gateway.tasks, task_id)
                if task["status"] in {"queued", "running"}:
                    gateway.finish(task_id, status="cancelled")
                return _json(200, task)
        raise NotFoundError(f"There is nothing at {self.command} {path}.")

    def predict(self, gateway: LittleGateway, name: str, body: bytes) -> tuple[int, str, bytes | Iterator[bytes]]:
        function = _known(gateway.functions, name)
        if self.headers["Content-Type"] == CONTENT_PICKLE:
            args, kwargs = cloudpickle.loads(body)
            return 200, CONTENT_PICKLE, cloudpickle.dumps(function(*args, **kwargs))
        result = function(**json.loads(body))
        if self.headers["Accept"] == CONTENT_EVENTS:
            return 200, CONTENT_EVENTS, _stream(result)
        return (200, *result) if isinstance(result, tuple) else _json(200, result)

    def accept(self, gateway: LittleGateway, name: str, task_id: str, body: bytes) -> dict[str, Any]:
        _known(gateway.functions, name)
        if task_id in gateway.tasks:
            return gateway.tasks[task_id]
        with gateway.changed:  # requests come in threads of their own
            open_now = sum(task["status"] == "queued" for task in gateway.tasks.values())
            if gateway.most_open is not None and open_now >= gateway.most_open:
                gateway.refusals += 1
                raise OverloadedError("The queue is full.", retry_after_seconds=gateway.retry_after_seconds)
            task = self.note(gateway, name, task_id, body)
        if name not in gateway.held:
            gateway.run(task, json.loads(body))
        return gateway.tasks[task_id]

    def note(self, gateway: LittleGateway, name: str, task_id: str, body: bytes) -> dict[str, Any]:
        task = {"id": task_id, "endpoint": name, "status": "queued", "attempt": 1, "max_attempts": 3, "created_at": 1.0}
        gateway.inputs[task_id] = self.headers["Content-Type"], body
        gateway.tasks[task_id] = task | {"finished_at": None, "error": None}
        return gateway.tasks[task_id]

    def follow(self, gateway: LittleGateway, ids: list[str]) -> Iterator[bytes]:
        gateway.following.append(ids)
        gateway.streams += 1
        try:
            yield from self._finals(gateway, ids)
        finally:
            gateway.streams -= 1

    def _finals(self, gateway: LittleGateway, ids: list[str]) -> Iterator[bytes]:
        left = dict.fromkeys(ids)
        while left:
            with gateway.changed:
                ready = [one for one in left if gateway.tasks.get(one, {}).get("status") not in {"queued", "running"}]
                if not ready:
                    gateway.changed.wait(0.05)
            if self._cut(gateway.drops_waiting, self.path):
                raise _CutError
            for one in ready:
                del left[one]
                if one in gateway.tasks:
                    yield b"data: " + json.dumps(gateway.tasks[one]).encode() + b"\n\n"
                else:
                    yield b"event: missing\ndata: " + json.dumps({"id": one}).encode() + b"\n\n"
            yield b": keep-alive\n\n"

    def wait(self, gateway: LittleGateway, task_id: str, seconds: float) -> dict[str, Any]:
        task, until = _known(gateway.tasks, task_id), time.monotonic() + seconds
        with gateway.changed:
            while task["status"] in {"queued", "running"} and (left := until - time.monotonic()) > 0:
                gateway.changed.wait(min(left, 0.05))
                if self._cut(gateway.drops_waiting, self.path):
                    raise _CutError
            return task


def _json(status: int, data: Any) -> tuple[int, str, bytes]:
    return status, CONTENT_JSON, json.dumps(data).encode()


def _known(things: dict[str, Any], name: str) -> Any:
    if name not in things:
        raise NotFoundError(f"There is no {name!r}.")
    return things[name]


def _page(gateway: LittleGateway, query: dict[str, str]) -> dict[str, Any]:
    found = [
        task
        for task in reversed(gateway.tasks.values())
        if query.get("endpoint", task["endpoint"]) == task["endpoint"]
        and task["status"] in query.get("status", task["status"]).split(",")
        and (query.get("dead") != "true" or task["id"] in gateway.dead)
    ]
    start = int(query.get("cursor", 0))
    end = start + int(query["limit"])
    return {"tasks": found[start:end], "cursor": str(end) if end < len(found) else None}


def _bury(gateway: LittleGateway, task_id: str, verb: str) -> dict[str, Any]:
    task = _known(gateway.tasks, task_id)
    if verb == "requeue" and task["status"] != "failed":
        raise ConflictError(f"The task is {task['status']}; only a failed one can be queued again.", task_id=task_id)
    if task["status"] in {"queued", "running"}:
        raise ConflictError(f"The task is {task['status']}; cancel it first.", task_id=task_id)
    if task_id in gateway.dead:
        gateway.dead.remove(task_id)
    if verb == "drop":
        del gateway.tasks[task_id]
        return {"id": task_id, "status": "dropped"}
    gateway.finish(task_id, status="queued", error=None, finished_at=None)
    return dict(task)


def _endpoint(gateway: LittleGateway, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    if spec["bundle_id"] not in gateway.bundles:
        raise ConflictError("There is no such bundle.")
    version = gateway.endpoints.get(name, {"wanted_version": 0})["wanted_version"] + 1
    endpoint = {"id": "end_1", "name": name, "owner": "me", "status": "building", "reason": "", "spec": spec}
    times = {"wanted_version": version, "serving_version": 0, "workers": [], "created_at": 1.0, "updated_at": 1.0}
    gateway.endpoints[name] = endpoint | times
    return gateway.endpoints[name]


def _events(gateway: LittleGateway) -> Iterator[bytes]:
    for event in gateway.events:
        yield f"data: {json.dumps(event)}\n\n".encode()
        if event.get("cut"):
            del event["cut"]
            return
    yield f"event: done\ndata: {json.dumps(gateway.outcome)}\n\n".encode()


def _stream(items: Any) -> Iterator[bytes]:
    try:
        for item in items:
            if item is Ellipsis:
                return
            yield b": keep-alive\n\ndata: " + json.dumps(item, ensure_ascii=False).encode() + b"\n\n"
    except ValueError as error:
        yield b"event: error\ndata: " + json.dumps(RemoteError(str(error)).to_json()).encode() + b"\n\n"
        return
    yield b"event: done\ndata: {}\n\n"
