"""A server for images of tests: standard library only, listens on PORT, and does what each call asks for."""

import http.server
import json
import os
import sys
import threading
import time
from pathlib import Path

READY = os.environ.get("READY", "/ready")
STATUS = int(os.environ.get("READY_STATUS", "200"))
SHM = "/dev/shm"  # noqa: S108 - the container's own


def say(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    refusals = 0

    def do_GET(self):
        self.answer(STATUS if self.path == READY else 404, {"status": "here"})

    def do_POST(self):
        order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        do = order.get("do", "echo")
        say(f"asked to {do}")
        if self.path == "/events":
            self.stream(order)
        elif self.path != "/answer":
            self.answer(404, {"detail": f"no {self.path} here"})
        else:
            getattr(self, f"do_{do}")(order)

    def do_echo(self, order):
        about = {"version": os.environ.get("VERSION", ""), "accept": self.headers.get("Accept", "")}
        self.answer(200, {"got": order, "argv": sys.argv[1:], "host": os.uname().nodename, **about})

    def do_sleep(self, order):
        time.sleep(order["seconds"])
        self.answer(200, {"host": os.uname().nodename})

    def do_busy(self, order):
        Handler.refusals += 1
        if Handler.refusals % (order["times"] + 1):
            self.answer(order["status"], {"detail": "full"})
        else:
            self.answer(200, {"refusals": order["times"]})

    def do_html(self, _order):
        self.send_bytes(200, "text/html", b"<script>alert(1)</script>")

    def do_wrong(self, _order):
        self.answer(400, {"detail": "that is wrong"})

    def do_exit(self, order):
        os._exit(order["code"])

    def do_eat(self, order):
        self.answer(200, {"eaten": len(bytearray(b"x") * (order["mib"] * 2**20))})

    def do_try(self, order):
        """Say what it may do: who it is, and whether it can write into folders."""
        room = os.statvfs(SHM)
        found = {"uid": os.getuid(), "gid": os.getgid(), "shm_mib": room.f_blocks * room.f_frsize // 2**20}
        for folder in order["folders"]:
            try:
                Path(folder, order.get("file", "probe")).write_text(order.get("text", "x"))
                found[folder] = "written"
            except OSError as error:
                found[folder] = error.strerror
        self.answer(200, found)

    def do_read(self, order):
        self.answer(200, {"text": Path(order["file"]).read_text()})

    def stream(self, order):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(order["count"]):
            self.chunk(b"data: %s\n\n" % json.dumps({"number": number, "accept": self.headers["Accept"]}).encode())
        self.chunk(b"")

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def answer(self, status, value):
        self.send_bytes(status, "application/json", json.dumps(value).encode())

    def send_bytes(self, status, kind, data):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Handler)
    threading.Thread(target=server.serve_forever).start()
    say("listening")
