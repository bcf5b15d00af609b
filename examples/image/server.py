"""An image that serves by itself: a ready route, a predict route and a stream route, with the standard library alone.

Build it (``docker build -t shout examples/image``), then deploy it::

    brinery deploy --image shout --predict-route /shout --stream-route /spell
    brinery call shout text=hello
"""

import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LETTER_SECONDS = float(os.environ.get("LETTER_SECONDS", "0.05"))


class Handler(BaseHTTPRequestHandler):
    """Answers the platform's questions and its callers' calls."""

    protocol_version = "HTTP/1.1"  # connections are kept: the next call needs no new one

    def do_GET(self) -> None:
        """Say whether calls can come; a model would be loaded before this says 200."""
        self.answer(200 if self.path == "/readyz" else 404, {})

    def do_POST(self) -> None:
        """Take a call: its arguments are one JSON object."""
        arguments = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = str(arguments.get("text", ""))
        if self.path == "/shout":
            self.answer(200, {"text": text.upper()})
        elif self.path == "/spell":
            self.spell(text)
        else:
            self.answer(404, {"detail": f"there is no {self.path}"})

    def answer(self, status: int, result: dict) -> None:
        """Send one JSON object."""
        data = json.dumps(result).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def spell(self, text: str) -> None:
        """Send each letter when it is there, as server-sent events in chunks."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for letter in text:
            self.chunk(f"data: {json.dumps(letter)}\n\n".encode())
            time.sleep(LETTER_SECONDS)
        self.chunk(b"")

    def chunk(self, data: bytes) -> None:
        """Send one chunk; an empty one is the end."""
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))


if __name__ == "__main__":
    # The platform says where to listen, and reaches nothing else of the container.
    ThreadingHTTPServer(("", int(os.environ["PORT"])), Handler).serve_forever()
