"""A real worker process for tests: a bundle packed here, `python -m brinery_worker` over it, and a client."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import cloudpickle

DEADLINE_SECONDS = 30.0
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def pack(path, loaded, kind="function", *, sources=None, manifest=None):
    """Write a bundle and return its digest."""
    data = {
        "name": "test",
        "kind": kind,
        "python": HERE,
        "cloudpickle": cloudpickle.__version__,
        "format": 1,
        **(manifest or {}),
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", json.dumps(data))
        archive.writestr("function.pkl", loaded if isinstance(loaded, bytes) else cloudpickle.dumps(loaded))
        for name, text in (sources or {}).items():
            archive.writestr(f"sources/{name}", text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Reply:
    def __init__(self, status, headers, body):
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json["error"]

    @property
    def events(self):
        """The server-sent events as (kind, data) pairs."""
        found = []
        for block in self.body.decode().split("\n\n")[:-1]:
            fields = dict(line.split(": ", 1) for line in block.split("\n"))
            found.append((fields.get("event", "message"), json.loads(fields["data"])))
        return found


class WorkerProcess:
    """A worker under test; `stop` in every case."""

    def __init__(self, bundle, sha256, *, arguments=(), env=None, pass_fds=()):
        ports = [] if pass_fds else ["--port", "0", "--control-port", "0"]
        command = [sys.executable, "-m", "brinery_worker", "--bundle", str(bundle), "--sha256", sha256]
        self.process = subprocess.Popen(
            [*command, *ports, *arguments],
            env={**os.environ, "TMPDIR": str(Path(bundle).parent), **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=pass_fds,
            start_new_session=True,
        )
        self.out, self.err = [], []
        self.port = self.control_port = 0
        places = queue.Queue()
        self._readers = [
            threading.Thread(target=self._read, args=args, daemon=True)
            for args in ((self.process.stdout, self.out, None), (self.process.stderr, self.err, places))
        ]
        for reader in self._readers:
            reader.start()
        found = places.get(timeout=DEADLINE_SECONDS)
        if found is not None:
            self.port, self.control_port = found

    def _read(self, pipe, lines, places):
        with pipe:
            for raw in pipe:
                line = raw.decode().rstrip("\n")
                lines.append(line)
                if places is not None and (match := re.search(r"serving on port (\d+), control on port (\d+)", line)):
                    places.put((int(match[1]), int(match[2])))
        if places is not None:
            places.put(None)

    def request(self, method, path, body=None, headers=None, *, port=None):
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=DEADLINE_SECONDS)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Reply(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def predict(self, arguments=None, *, path="/predict", headers=None, **kwargs):
        body = json.dumps(kwargs if arguments is None else arguments)
        return self.request("POST", path, body, {"Content-Type": "application/json", **(headers or {})})

    def predict_later(self, request_id="req_later", *, path="/predict", timeout_seconds=None, **kwargs):
        """Call in a thread; returns a queue that gets the reply, or the exception."""
        replies = queue.Queue()
        headers = {"X-Brinery-Request-Id": request_id}
        if timeout_seconds is not None:
            headers["X-Brinery-Timeout-Seconds"] = str(timeout_seconds)

        def call():
            try:
                replies.put(self.predict(path=path, headers=headers, **kwargs))
            except (OSError, http.client.HTTPException) as error:
                replies.put(error)

        threading.Thread(target=call, daemon=True).start()
        return replies

    @property
    def status(self):
        return self.request("GET", "/status", port=self.control_port).json

    def cancel(self, request_id):
        return self.request("POST", f"/cancel?request_id={request_id}", port=self.control_port).json

    def fate(self, request_id):
        return self.request("GET", f"/fate?request_id={request_id}", port=self.control_port).json

    @property
    def child_pid(self):
        pid = self.process.pid
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(words[0]) if words else None

    def wait_until(self, condition, what):
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"never {what}; log: {self.err}"
            time.sleep(0.01)

    def wait_state(self, *states):
        self.wait_until(lambda: self.status["state"] in states, f"in state {states}")
        return self

    def wait_busy(self, count=1):
        self.wait_until(lambda: self.status["busy"] == count, f"{count} busy")
        return self

    def wait_log(self, text):
        self.wait_until(lambda: any(text in line for line in self.out + self.err), f"saying {text!r}")

    def wait(self):
        code = self.process.wait(DEADLINE_SECONDS)
        for reader in self._readers:
            reader.join(DEADLINE_SECONDS)
        return code

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(DEADLINE_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise
        return self.wait()


def gone(pid):
    """Whether a process has ended; one that nobody has reaped yet has ended too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


class Workers:
    """Starts workers in a folder and stops them all."""

    def __init__(self, folder):
        self._folder = folder
        self._started = []

    def start(self, loaded, kind="function", *, arguments=(), env=None, until=("ready", "busy"), **packed):
        bundle = self._folder / f"bundle-{len(self._started)}.zip"
        return self.start_file(bundle, pack(bundle, loaded, kind, **packed), arguments=arguments, env=env, until=until)

    def start_file(self, bundle, sha256, *, arguments=(), env=None, until=()):
        worker = WorkerProcess(bundle, sha256, arguments=arguments, env=env)
        self._started.append(worker)
        return worker.wait_state(*until) if until else worker

    def stop(self):
        for worker in self._started:
            worker.stop()
