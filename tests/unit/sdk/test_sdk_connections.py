"""The connections that threads use: kept, renewed, over TLS, by a proxy, and never with a key in an error's text."""

import json
import re
import shutil
import socket
import ssl
import subprocess
import threading

import pytest

from brinery.client import Client
from brinery.errors import MAX_WORDS_BYTES, BrineryError, InvalidRequestError, RemoteError, UnavailableError
from brinery.routes import Request
from brinery.transport import tls

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Script:
    """A server that reads and answers as it is told, one list of answers for each connection.

    An answer is given once a request has come to its end; after the last one the connection is closed.
    """

    def __init__(self, *connections: list[bytes], context: ssl.SSLContext | None = None, ends: bytes = b"\r\n\r\n"):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.received: list[bytes] = []
        self.first_pieces: list[bytes] = []
        self._connections = connections
        self._context = context
        self._ends = ends
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        for answers in self._connections:
            plain, _ = self.listener.accept()
            plain.settimeout(20)
            try:
                connected = self._context.wrap_socket(plain, server_side=True) if self._context else plain
            except OSError:  # the client did not trust it
                plain.close()
                continue
            with connected:
                for answer in answers:
                    data = connected.recv(2**20)
                    self.first_pieces.append(data)
                    while self._ends not in data and (more := connected.recv(2**20)):
                        data += more
                    self.received.append(data)
                    connected.sendall(answer)

    def close(self) -> None:
        self._thread.join(20)
        self.listener.close()


@pytest.fixture
def serve():
    opened = []

    def start(*connections, **options):
        opened.append(Script(*connections, **options))
        return opened[-1]

    yield start
    for server in opened:
        server.close()


@pytest.fixture
def client_of():
    opened = []

    def make(url, key="brn_secret"):
        opened.append(Client(url, key))
        return opened[-1]

    yield make
    for client in opened:
        client.close()


def test_one_connection_carries_many_requests_and_one_that_was_closed_meanwhile_is_replaced(serve, client_of):
    server = serve([OK, OK, OK], [OK])
    client = client_of(f"http://127.0.0.1:{server.port}")
    assert [client.info() for _ in range(4)] == [{}] * 4  # the server closes after the third
    assert len(server.received) == 4


def test_head_and_body_of_a_small_request_come_in_one_piece(serve, client_of):
    server = serve([OK], ends=b"arguments")
    request = Request(
        method="POST", path="/v1/x", content=b"arguments", params={"a": True, "b": None, "c": ["d e", "f"]}
    )
    assert client_of(f"http://127.0.0.1:{server.port}").send(request).json() == {}
    assert server.first_pieces == server.received
    assert server.received[0].startswith(b"POST /v1/x?a=true&c=d+e&c=f HTTP/1.1\r\n")
    assert b"Authorization: Bearer brn_secret\r\n" in server.received[0]


def test_a_large_body_arrives_whole(serve, client_of):
    content = bytes(range(255)) * 4096 + b"END OF IT"
    server = serve([OK], ends=b"END OF IT")
    client_of(f"http://127.0.0.1:{server.port}").send(Request(method="PUT", path="/v1/x", content=content))
    head, _, arrived = server.received[0].partition(b"\r\n\r\n")
    assert arrived == content
    assert f"Content-Length: {len(content)}".encode() in head


def test_an_answer_that_comes_before_the_body_was_read_counts(serve, client_of):
    refusal = b'{"error": {"type": "PayloadTooLargeError", "message": "too much"}}'
    head = b"HTTP/1.1 413 Payload Too Large\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(refusal)
    server = serve([head + refusal])
    client = client_of(f"http://127.0.0.1:{server.port}")
    # Whether the refusal can still be read once the server has closed is up to the kernel: the other end is a lost
    # connection, never a success.
    with pytest.raises(BrineryError, match=r"too much|was lost"):
        client.send(Request(method="PUT", path="/v1/x", content=b"\r\n\r\n" + bytes(2**22)))


def test_an_answer_that_breaks_off_is_a_lost_connection(serve, client_of):
    server = serve([b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}"])
    with pytest.raises(UnavailableError, match=r"was lost .*may or may not have happened"):
        client_of(f"http://127.0.0.1:{server.port}").info()


def answered(status, body, *headers):
    lines = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status} X", *headers, f"Content-Length: {len(body)}"))
    return f"{lines}\r\n".encode() + body


@pytest.mark.parametrize("status", [404, 422, 500, 502, 504])
def test_an_error_in_an_image_s_own_words_is_passed_on(serve, client_of, status):
    answer = answered(status, b'{"detail": "no such voice"}', "X-Brinery-Answered-By: worker")
    client = client_of(f"http://127.0.0.1:{serve([answer, answer]).port}")
    for _ in range(2):
        with pytest.raises(RemoteError) as caught:
            client.send(Request(method="POST", path="/v1/x"))
        assert str(caught.value) == f'The worker answered with status {status}: {{"detail": "no such voice"}}'
        assert caught.value.context == {"http_status": status}


@pytest.mark.parametrize(
    ("said", "told"),
    [(b"", ""), (b"\xff\x00no", ": \ufffd\x00no"), (b"[" * 100_000, ": " + "[" * MAX_WORDS_BYTES)],
)
def test_whatever_an_image_says_is_an_error_of_bounded_length(serve, client_of, said, told):
    server = serve([answered(500, said, "X-Brinery-Answered-By: worker")])
    with pytest.raises(RemoteError) as caught:
        client_of(f"http://127.0.0.1:{server.port}").send(Request(method="POST", path="/v1/x"))
    assert str(caught.value) == f"The worker answered with status 500{told}"


def test_an_error_of_ours_that_a_worker_answered_keeps_its_class(serve, client_of):
    body = json.dumps(InvalidRequestError("x is missing").to_json()).encode()
    server = serve([answered(422, body, "X-Brinery-Answered-By: worker")])
    with pytest.raises(InvalidRequestError, match=r"^x is missing$"):
        client_of(f"http://127.0.0.1:{server.port}").send(Request(method="POST", path="/v1/x"))


def test_a_proxy_that_answers_for_the_gateway_is_not_taken_for_a_worker(serve, client_of):
    server = serve([answered(502, b"<html>Bad Gateway</html>")])
    with pytest.raises(UnavailableError, match="gateway is away"):
        client_of(f"http://127.0.0.1:{server.port}").info()


def test_a_proxy_of_the_environment_is_used_for_the_world_outside_only(serve, client_of, monkeypatch):
    proxy, here = serve([OK]), serve([OK])
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert client_of("http://gateway.invalid:81").info() == {}
    assert proxy.received[0].startswith(b"GET http://gateway.invalid:81/v1/info HTTP/1.1\r\n")
    assert client_of(f"http://127.0.0.1:{here.port}").info() == {}
    assert here.received[0].startswith(b"GET /v1/info HTTP/1.1\r\n")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_tls_is_verified(serve, client_of, monkeypatch, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    command += f" -addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}"
    subprocess.run(command.split(), check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = serve([OK], [OK, OK], [OK], context=context)
    try:
        tls.cache_clear()
        with pytest.raises(UnavailableError, match=r"Nothing answers at .*certificate verify failed"):
            client_of(f"https://localhost:{server.port}").info()
        tls.cache_clear()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        trusting = client_of(f"https://localhost:{server.port}")
        assert [trusting.info(), trusting.info()] == [{}, {}]
        with pytest.raises(UnavailableError, match=r"certificate verify failed.*start it"):
            client_of(f"https://127.0.0.1:{server.port}").info()  # whom the certificate does not name
    finally:
        tls.cache_clear()


def test_a_key_that_http_cannot_carry_is_refused_without_being_shown(serve, client_of):
    server = serve([])
    with pytest.raises(InvalidRequestError) as caught:
        client_of(f"http://127.0.0.1:{server.port}", "brn_one\nbrn_two").info()
    assert not re.search("brn_", str(caught.value))
    assert caught.value.__suppress_context__


def test_a_connection_that_is_in_use_while_the_client_is_closed_is_closed_after_its_answer():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}", "brn_key")
        answers = []
        caller = threading.Thread(
            target=lambda: answers.append(client.send(Request(method="GET", path="/v1/x")).content)
        )
        caller.start()
        connected, _ = listener.accept()
        with connected:
            connected.settimeout(20)
            assert connected.recv(2**20)
            client.close()
            connected.sendall(OK)
            caller.join(20)
            assert answers == [b"{}"]
            assert connected.recv(1) == b""
