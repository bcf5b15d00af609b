"""The controller's question to a worker that may be hostile: whatever comes, it ends, small and soon."""

import contextlib
import socket
import threading
import time

import pytest

from brinery_platform.controller.small_get import MAX_BYTES, small_get


class Answering:
    """Takes one connection at a time and answers each as it was told."""

    def __init__(self, *pieces, pause=0.0, repeat=1):
        self.pieces, self.pause, self.repeat = pieces, pause, repeat
        self.sent = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self.run)

    def run(self):
        with contextlib.suppress(OSError):
            connection, _ = self.listener.accept()
            with connection:
                connection.recv(65536)
                for piece in (piece for _ in range(self.repeat) for piece in self.pieces):
                    connection.sendall(piece)
                    self.sent += len(piece)
                    time.sleep(self.pause)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.listener.close()
        self.thread.join(30)


def test_an_ordinary_answer_comes_whole():
    with Answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") as worker:
        assert small_get(f"{worker.url}/status", seconds=10) == (200, b"{}")


def test_a_redirect_is_an_answer_and_is_not_followed():
    with Answering(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n") as worker:
        assert small_get(f"{worker.url}/status", seconds=10) == (302, b"")


def test_an_answer_without_an_end_is_given_up_early():
    endless = Answering(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * MAX_BYTES, repeat=200)
    with endless as worker, pytest.raises(ValueError, match="does not end"):
        small_get(f"{worker.url}/status", seconds=30)
    assert worker.sent < 100 * MAX_BYTES


def test_an_answer_byte_by_byte_ends_with_the_time_as_a_whole():
    with Answering(b"H", pause=0.1, repeat=40) as worker:
        before = time.monotonic()
        with pytest.raises((OSError, ValueError)):
            small_get(f"{worker.url}/status", seconds=0.5)
        assert time.monotonic() - before < 3.5  # the forty bytes take 4 s


@pytest.mark.parametrize("answer", [b"", b"banana\r\n\r\n", b"HTTP/1.1 200 OK\r\n"])
def test_what_is_no_http_is_an_error(answer):
    with Answering(answer) as worker, pytest.raises((OSError, ValueError)):
        small_get(f"{worker.url}/status", seconds=10)


def test_nobody_there_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        url = f"http://127.0.0.1:{gone.getsockname()[1]}"
    with pytest.raises(OSError, match="refused"):
        small_get(f"{url}/status", seconds=10)
