"""One try of a webhook against receivers that are well, hostile, or not where they seem to be."""

from __future__ import annotations

import asyncio
import base64
import datetime
import ssl
from ipaddress import ip_network

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from webhook_receiver import LOOPBACK, Receiver

from brinery_platform.webhooks import READ_BYTES, Sender, headers


def resolver(*answers):
    """Answer one after the other, the last one for ever; `asked` counts."""

    async def resolve(_host, _port):
        resolve.asked += 1
        return answers[min(resolve.asked, len(answers)) - 1]

    resolve.asked = 0
    return resolve


def send(receiver, url="http://127.0.0.1:{port}/hook?a=b", *, allowed=LOOPBACK, webhook=None, **choices):
    """Send one message to a receiver and return the outcome."""

    async def scenario():
        sender = Sender(allowed, **choices)
        try:
            async with receiver:
                given = {"url": url.format(port=receiver.port), **(webhook or {})}
                head = headers("tsk_1", b'{"x": 1}', b"k" * 32, 1_700_000_000)
                return await sender.send(given, head, b'{"x": 1}')
        finally:
            sender.close()

    return asyncio.run(scenario())


def test_a_message_arrives_whole_with_its_headers():
    receiver = Receiver()
    outcome = send(receiver, webhook={"username": "ann", "password": "pä:ss"})
    assert (outcome.status, outcome.error) == (200, None)
    [(first, found, body)] = receiver.requests
    assert (first, body) == ("POST /hook?a=b HTTP/1.1", b'{"x": 1}')
    assert found["host"] == f"127.0.0.1:{receiver.port}"
    assert found["content-type"] == "application/json"
    assert base64.b64decode(found["authorization"].removeprefix("Basic ")).decode() == "ann:pä:ss"
    assert found["webhook-id"] == "tsk_1"
    assert found["webhook-signature"].startswith("v1,")


def test_without_a_user_no_authorization_is_sent_and_proxies_of_the_environment_are_not_used(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    receiver = Receiver()
    assert send(receiver).error is None
    assert "authorization" not in receiver.requests[0][1]


def test_loopback_is_refused_by_default_in_every_spelling():
    for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::ffff:127.0.0.1]", "[::1]"):
        receiver = Receiver()
        outcome = send(receiver, f"http://{host}:{{port}}/", allowed=())
        assert outcome.status is None
        assert "BRINERY_WEBHOOK_NETWORKS" in outcome.error, host
        assert receiver.connections == 0


def test_a_name_that_leads_into_a_private_network_is_refused_and_its_address_not_told():
    receiver = Receiver()
    for found in (["127.0.0.1"], ["1.1.1.1", "127.0.0.1"], ["10.11.12.13"]):
        outcome = send(receiver, "http://hooks.example:{port}/", allowed=(), resolve=resolver(found))
        assert "hooks.example does not lead to public addresses only" in outcome.error
        assert found[-1] not in outcome.error
    assert receiver.connections == 0


def test_a_name_is_resolved_once_and_the_connection_goes_to_the_address_that_was_checked():
    receiver, other = Receiver(host="127.0.0.2"), Receiver(host="127.0.0.3")
    rebinding = resolver(["127.0.0.2"], ["127.0.0.3"])
    outcome = send(receiver, "http://hooks.example:{port}/", allowed=[ip_network("127.0.0.2/32")], resolve=rebinding)
    assert outcome.status == 200
    assert rebinding.asked == 1
    assert receiver.requests[0][1]["host"] == f"hooks.example:{receiver.port}"
    # The next try asks again, and what it is told now is refused.
    outcome = send(other, "http://hooks.example:{port}/", allowed=[ip_network("127.0.0.2/32")], resolve=rebinding)
    assert outcome.status is None
    assert (rebinding.asked, other.connections) == (2, 0)


def test_of_several_addresses_the_next_is_tried_where_one_does_not_answer():
    receiver = Receiver(host="127.0.0.2")
    outcome = send(receiver, "http://hooks.example:{port}/", resolve=resolver(["127.0.0.9", "127.0.0.2"]))
    assert outcome.status == 200


def test_a_name_that_hangs_or_does_not_exist_is_a_failure_in_time():
    async def hangs(_host, _port):
        await asyncio.Event().wait()

    assert "in time" in send(Receiver(), "http://hooks.example/", resolve=hangs, connect_seconds=0.2).error
    assert "has no address" in send(Receiver(), "http://" + "a" * 64 + ".invalid/").error
    assert "has no address" in send(Receiver(), "http://no-such-name.invalid/").error


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed_and_the_text_says_what_to_do(status):
    target = Receiver()
    receiver = Receiver(f"HTTP/1.1 {status} Moved\r\nLocation: http://127.0.0.1:1/x\r\n\r\n".encode())
    outcome = send(receiver)
    assert outcome.status == status
    assert "give the final address (http://127.0.0.1:1/x)" in outcome.error
    assert target.connections == 0
    assert receiver.connections == 1


def test_errors_show_the_beginning_of_the_answer_on_one_line():
    receiver = Receiver(b"HTTP/1.1 500 Broken\r\nContent-Length: 13\r\n\r\nno\r\n\x1b[31m da\xff")
    assert send(receiver).error == "HTTP 500: no [31m da\N{REPLACEMENT CHARACTER}"
    assert send(Receiver(b"HTTP/1.1 503 Away\r\nContent-Length: 0\r\n\r\n")).error == "HTTP 503"


def test_a_receiver_that_sends_the_password_back_does_not_get_it_into_the_record():
    said = b"HTTP/1.1 400 No\r\nLocation: http://x/?hunter2\r\n\r\nAuthorization: Basic YW5uOmh1bnRlcjI= hunter2"
    for status in (b"400", b"302"):
        outcome = send(Receiver(said.replace(b"400", status)), webhook={"username": "ann", "password": "hunter2"})
        assert outcome.status == int(status)
        assert "hunter2" not in outcome.error
        assert "YW5u" not in outcome.error


def test_an_endless_answer_is_read_to_a_few_kibibytes():
    written = 0

    async def endless(writer):
        nonlocal written
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()
            written += 65536

    outcome = send(Receiver(b"HTTP/1.1 500 No\r\n\r\n", after=endless))
    assert outcome.status == 500
    assert len(outcome.error) < READ_BYTES
    assert written < 64 * 1024 * 1024
    assert send(Receiver(b"HTTP/1.1 200 OK\r\n\r\n", after=endless)).error is None


def test_a_receiver_that_hangs_costs_no_more_than_the_whole_limit():
    async def hangs(_writer):
        await asyncio.Event().wait()

    async def trickles(writer):
        while True:
            writer.write(b"X-A: b\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)

    for answer, after in ((b"", hangs), (b"HTTP/1.1 200 OK\r\n", trickles), (b"HTTP/1.1 200 OK\r\n", hangs)):
        outcome = send(Receiver(answer, after=after), whole_seconds=0.5)
        assert outcome.status is None
        assert outcome.error


def test_a_status_counts_although_the_body_never_comes():
    async def hangs(_writer):
        await asyncio.Event().wait()

    outcome = send(Receiver(b"HTTP/1.1 418 No\r\nContent-Length: 9\r\n\r\nabc", after=hangs))
    assert (outcome.status, outcome.error) == (418, "HTTP 418: abc")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 999999 x\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-A: " + b"y" * 500_000 + b"\r\n\r\n",
    ],
    ids=["nothing", "ssh", "status", "upgrade", "head"],
)
def test_what_is_no_answer_is_a_failure_with_a_short_text(answer):
    outcome = send(Receiver(answer))
    assert outcome.error
    assert len(outcome.error) <= 500
    assert outcome.error.isprintable()


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "http:///x", "nonsense", "http://[::1", "http://127.0.0.1:99999/"])
def test_a_url_that_cannot_be_called_is_a_failure(url):
    assert send(Receiver(), url.replace("{", "{{")).error


def test_a_name_with_letters_of_another_alphabet_is_looked_up_in_its_ascii_form():
    asked = []

    async def resolve(host, _port):
        asked.append(host)
        return ["127.0.0.1"]

    receiver = Receiver()
    assert send(receiver, "http://bücher.example:{port}/ä", resolve=resolve).error is None
    assert asked == ["xn--bcher-kva.example"]
    assert receiver.requests[0][1]["host"] == f"xn--bcher-kva.example:{receiver.port}"


# ------------------------------------------------------------------------------------------------------------- TLS
def certificates(folder, name):
    """Return a server's context for `name` and the context that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, private = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(chain, private)
    return server, ssl.create_default_context(cafile=str(chain))


def test_tls_is_checked_against_the_name_although_the_connection_goes_to_an_address(tmp_path):
    server, trust = certificates(tmp_path, "hooks.example")
    found = resolver(["127.0.0.1"])
    good = send(Receiver(context=server), "https://hooks.example:{port}/", resolve=found, trust=trust)
    assert (good.status, good.error) == (200, None)
    for url, trusted in (("https://other.example:{port}/", trust), ("https://hooks.example:{port}/", None)):
        receiver = Receiver(context=server)
        bad = send(receiver, url, resolve=found, trust=trusted)
        assert bad.status is None
        assert "certificate" in bad.error.lower()
        assert receiver.requests == []
