"""A platform with hostile endpoints beside a peaceful one, control containers without protection, and own targets."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from hostile_table import ROWS, Row

from brinery_platform.runtimes.detached import home_mark
from brinery_platform.runtimes.docker import labels
from brinery_platform.runtimes.docker.engine import Engine, Facts
from containers import docker
from stack import Stack, wait_until

ARSENAL = (Path(__file__).with_name("arsenal.py")).read_text()
METADATA = "169.254.169.254"
MEMORY_MIB = 768
"""Of the hostile endpoint: enough for a thousand processes, less than it tries to hold."""
ENDPOINTS = f'''
import os
import socket
import sys
import threading
import time

from brinery import endpoint

BOUND = []
for port in (5005, 5006):  # while the module is imported, before anything serves
    for host in ("0.0.0.0", "127.0.0.1"):
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            with socket.socket() as taker:
                taker.setsockopt(socket.SOL_SOCKET, option, 1)
                try:
                    taker.bind((host, port))
                    taker.listen()
                    BOUND.append(f"listens on {{host}}:{{port}}")
                except OSError as error:
                    BOUND.append(error.strerror)


def run(code, call):
    scope = {{"__name__": "arsenal"}}
    exec(code, scope)
    try:
        return {{"got": eval(call, scope)}}
    except OSError as error:
        return {{"stopped": error.strerror or str(error) or type(error).__name__}}


@endpoint(memory_mib={MEMORY_MIB}, timeout_seconds=60, max_attempts=1)
def hostile(code: str, call: str):
    return run(code, call)


@endpoint(memory_mib=256, timeout_seconds=60, egress="off")
def shut(code: str, call: str):
    return run(code, call)


@endpoint(memory_mib=256, timeout_seconds=60, egress=["localhost:LISTED_AT", "*.invalid"])
def listed(code: str, call: str):
    return run(code, call)


@endpoint(memory_mib=256, timeout_seconds=60)
def early():
    return BOUND


def connections():
    """The connections that the worker serves."""
    for name in os.listdir("/proc/self/fd"):
        try:
            one = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        try:
            if one.family == socket.AF_INET and one.getsockname()[1] == 5005:
                one.getpeername()
                yield one
        except OSError:
            pass


@endpoint(memory_mib=256, timeout_seconds=6, max_attempts=1)
def raw(head: str, mib: int = 0, slow: str = "", then: str = "hang up"):
    """Answer past the worker: the same bytes to everybody who is connected."""
    piece = b"x" * 2**20

    def answer(one):
        try:
            one.settimeout(5)
            one.sendall(head.encode())
            for _ in range(mib):
                one.sendall(piece)
            for letter in slow:
                one.sendall(letter.encode())
                time.sleep(0.1)
            if then == "hang up":
                one.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it does not listen

    threads = [threading.Thread(target=answer, args=(one,)) for one in connections()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if then == "exit":
        os._exit(7)
    if then == "wait":
        time.sleep(600)
'''
NEIGHBOUR = """
from brinery import endpoint

@endpoint(memory_mib=256, env={"NEIGHBOURS_SECRET": "hush-7f3a"})
def neighbour(x: int) -> int:
    return x + 1
"""
LISTENER = """
import socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as listener:
    while True:
        asked, _ = listener.accept()
        asked.recv(4096)
        asked.sendall(b"HTTP/1.0 200 " + sys.argv[3].encode() + b"\\r\\n\\r\\n")
        asked.close()
"""


class Listed:
    """A web server on loopback, for the one host that an endpoint may reach."""

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(30)


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200, "here is what was listed")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Arena(Stack):
    """The platform, on the address that an ordinary network of the engine gives this machine; and all that is tried.

    Args:
        folder: Of everything.
        engine: The engine.
    """

    def __init__(self, folder: Path, engine: Engine) -> None:
        super().__init__(folder)
        self.engine = engine
        self.controls = f"brinery-control-{os.getpid()}"
        docker("network", "create", self.controls)  # as `docker run` would use one, if it had to be named
        (network,) = json.loads(docker("network", "inspect", self.controls))
        self.host = str(network["IPAM"]["Config"][0]["Gateway"])
        self.bridge = bridge(network["Id"])
        self._controls: dict[tuple[str, ...], str] = {}
        self.url = f"http://{self.host}:{self.port}"
        self.environment |= {"BRINERY_RUNTIME": "docker", "BRINERY_HOST": self.host}
        self.environment["BRINERY_EGRESS_NETWORKS"] = "127.0.0.0/8,::1/128"  # where the one listed host is
        self.listed = Listed()

    def start(self) -> None:
        """Have everything deployed, the peaceful endpoint by another owner."""
        (self.desk / "hostile_kit.py").write_text(ENDPOINTS.replace("LISTED_AT", str(self.listed.port)))
        (self.desk / "peaceful.py").write_text(NEIGHBOUR)
        self.brinery("up", "--detach")
        with self.http() as http:
            key = http.post("/v1/keys", json={"owner": "bob", "name": "peaceful"}).raise_for_status().json()["key"]
        self.bob = key
        self.brinery("deploy", "peaceful.py", BRINERY_API_KEY=key, BRINERY_URL=self.url)
        self.brinery("deploy", "hostile_kit.py")
        self.image = self.worker("hostile")["Image"]

    # ---------------------------------------------------------------------------------------------------- in ours
    def call(self, name: str, **arguments: Any) -> Any:
        """Call an endpoint; return its answer, or its error."""
        with self.http() as http:
            return http.post(f"/v1/endpoints/{name}/predict", json=arguments).json()

    def attempt(self, what: str, name: str = "hostile") -> str:
        """Run one attempt in a worker, which is to stop it; return what stopped it."""
        answer = self.call(name, code=ARSENAL, call=what)
        assert "got" not in answer, f"{what} got {answer['got']}"
        return str(answer["stopped"] if "stopped" in answer else answer["error"]["message"])

    def peace(self) -> None:
        """Whatever was done, the platform and the other owner's endpoint answer, and the hostile one does again."""
        with self.http() as http:
            headers = {"Authorization": f"Bearer {self.bob}"}
            answer = http.post("/v1/endpoints/neighbour/predict", json={"x": 1}, headers=headers)
            assert (answer.status_code, answer.text) == (200, "2")
            wait_until(lambda: self._answers(http), what="the hostile endpoint to answer again")

    def _answers(self, http: Any) -> bool:
        body = {"code": "", "call": "1 + 1"}
        return http.post("/v1/endpoints/hostile/predict", json=body).json() == {"got": 2}

    def said(self, name: str) -> str:
        """Everything that an endpoint says of itself: events and log."""
        with self.http() as http:
            events, log = (http.get(f"/v1/endpoints/{name}/{what}").text for what in ("events", "logs"))
        return f"{events}\n{log}"

    def worker(self, name: str) -> Facts:
        """What the engine knows of an endpoint's one worker."""
        endpoint_id = self.endpoint(name)["id"] if name != "neighbour" else self._of_bob()
        whose = {labels.HOME: home_mark(self.home), labels.KIND: "worker"}
        (found,) = [
            facts
            for facts in self.engine.containers(whose)
            if json.loads(facts["Labels"][labels.RUNNING])["endpoint_id"] == endpoint_id
        ]
        return found

    def _of_bob(self) -> str:
        with self.http() as http:
            headers = {"Authorization": f"Bearer {self.bob}"}
            return str(http.get("/v1/endpoints/neighbour", headers=headers).json()["id"])

    def address(self, name: str) -> str:
        networks = self.worker(name)["NetworkSettings"]["Networks"].values()
        return next(str(one["IPAddress"]) for one in networks)

    def network(self, name: str) -> str:
        """The id of the network that an endpoint's worker is connected to."""
        networks = self.worker(name)["NetworkSettings"]["Networks"].values()
        return next(str(one["NetworkID"]) for one in networks)

    def listening(self) -> list[list[Any]]:
        """Every TCP port of the platform's own processes."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                found += [
                    [one.laddr.ip, one.laddr.port] for one in process.net_connections("tcp") if one.status == "LISTEN"
                ]
        return found

    # ------------------------------------------------------------------------------------------- without protection
    def control(self, what: str, *options: str) -> str:
        """Run the same attempt as root in a container without protection; return what it got.

        Args:
            what: The call.
            options: Of ``docker run``, where the attempt needs more than a container has by itself.
        """
        if options not in self._controls:
            self._controls[options] = self.beside("sleep", "900", options=options)
        return self.inside(self._controls[options], what)

    def inside(self, container: str, what: str, user: str = "0") -> str:
        """Run an attempt in a container that runs."""
        command = ["docker", "exec", "-i", "--user", user, container, "/opt/brinery/environment/bin/python", "-"]
        call = f"{ARSENAL}\nprint('GOT', {what})"
        done = subprocess.run(command, input=call, capture_output=True, text=True, timeout=120, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith("GOT ")]
        assert lines, f"{what} did not succeed without protection either: {done.stderr[-500:]}"
        return lines[-1].removeprefix("GOT ")

    def beside(self, *command: str, options: tuple[str, ...] = ()) -> str:
        """Start a control container that runs on until the end; return its name."""
        name = f"{self.controls}-{secrets.token_hex(3)}"
        network = () if "--network" in options else ("--network", self.controls)
        ours = ("--name", name, "--user", "0", "--init", "--stop-timeout", "0", *network)
        docker("run", "-d", *ours, *options, "--entrypoint", command[0], self.image, *command[1:])
        return name

    def try_both(self, attempt: str, what: str, *options: str, ours: str = "", says: str = "") -> Row:
        """Try it in both, and note the row."""
        got = self.control(what, *options)
        row = Row(attempt, got, self.attempt(ours or what), says)
        ROWS.append(row)
        return row

    def clear(self) -> None:
        for one in self.engine.containers({}, ended_too=True):
            if any(name.startswith(f"/{self.controls}") for name in one["Names"]):
                self.engine.remove(one["Id"])
        docker("network", "rm", self.controls)
        self.listed.close()


def bridge(network_id: str) -> str:
    """Return the name of a network's interface on this machine."""
    return f"br-{network_id[:12]}"


@contextlib.contextmanager
def metadata_service(interfaces: list[str]) -> Iterator[None]:
    """A listener on the metadata address in a network namespace of its own, for what comes from these interfaces only.

    The machine's own packets to that address go where they always went.
    """
    if os.geteuid() != 0:
        pytest.skip("a network namespace of the test's own needs root")
    mark = f"{os.getpid() % 100_000}"
    space, near, far, table = f"brinery-{mark}", f"bn{mark}", f"bf{mark}", str(100_000 + int(mark))
    rules = [["rule", "del", "iif", one, "to", METADATA, "lookup", table] for one in interfaces]
    ip("netns", "add", space)
    listener = None
    try:
        ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", space)
        ip("addr", "add", "198.51.100.1/32", "dev", near)
        ip("link", "set", near, "up")
        ip("-n", space, "addr", "add", f"{METADATA}/32", "dev", far)
        ip("-n", space, "link", "set", far, "up")
        ip("-n", space, "route", "add", "default", "dev", far)
        ip("route", "add", METADATA, "dev", near, "table", table)
        for rule in rules:
            ip(*("add" if word == "del" else word for word in rule))
        command = ["ip", "netns", "exec", space, sys.executable, "-c", LISTENER, METADATA, "80"]
        command.append("the metadata of this machine")
        listener = subprocess.Popen(command)
        wait_until(lambda: ":0050 " in _tcp(space), what="the metadata service to listen")
        yield
    finally:
        if listener is not None:
            listener.terminate()
            listener.wait(30)
        for rule in rules:
            ip(*rule, check=False)
        ip("link", "del", near, check=False)
        ip("netns", "del", space)


def ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=True, timeout=30)


def _tcp(space: str) -> str:
    command = ["ip", "netns", "exec", space, "cat", "/proc/net/tcp"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
