"""The egress proxy on loopback, with a resolver that says what the test wants and hosts that the test listens as."""

import asyncio
import base64
import contextlib
import socket
import struct
from ipaddress import ip_network
from urllib.parse import urlsplit

import pytest

from brinery_platform.addresses import AddressPolicy
from brinery_platform.egress import proxy as proxies
from brinery_platform.egress.permits import Permit, variables
from brinery_platform.egress.proxy import Proxy

REFUSED = ["127.0.0.1", "10.0.0.1", "169.254.169.254", "100.64.0.1", "::1", "::ffff:10.0.0.1", "fe80::1", "fd00::1"]
REFUSED += ["224.0.0.1", "64:ff9b::7f00:1", "0.0.0.0"]  # noqa: S104 - refused, not bound


class World:
    """A proxy, one host behind it that answers what it got, and what the resolver was asked."""

    def __init__(self, home, answers, *, allowed=("127.0.0.0/8",), policy=AddressPolicy, idle_seconds=60.0):
        self.home, self.answers = home, answers
        self.asked, self.heard = [], []
        policy = policy([ip_network(one) for one in allowed], setting="BRINERY_EGRESS_NETWORKS", any_port=True)
        self.proxy = Proxy(home, policy, self.resolve, idle_seconds=idle_seconds)

    async def resolve(self, host, port):
        self.asked.append((host, port))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def host(self, reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.heard.append(head)
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nheard " + head.split()[1])
            await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    @contextlib.asynccontextmanager
    async def running(self):
        async with (
            await asyncio.start_server(self.host, "127.0.0.1", 0) as host,
            await self.proxy.listen("127.0.0.1", 0) as proxy,
        ):
            self.port = host.sockets[0].getsockname()[1]
            self.at = proxy.sockets[0].getsockname()[:2]
            try:
                yield
            finally:
                async with asyncio.timeout(30):
                    while len(asyncio.all_tasks()) > 1:  # connections that are being ended
                        await asyncio.sleep(0.01)

    async def ask(self, raw, hosts=("host.test",), *, permit=True):
        """Send a request with a permit, and return all that comes back."""
        reader, writer = await asyncio.open_connection(*self.at)
        named = tuple(f"{host}:{self.port}" for host in hosts)
        parts = urlsplit(variables(self.home, Permit("end_1", named), "x:1")["http_proxy"])
        basic = base64.b64encode(f"{parts.username}:{parts.password}".encode()).decode()
        writer.write(raw.replace("PORT", str(self.port)).encode())
        writer.write(f"Proxy-Authorization: Basic {basic}\r\n\r\n".encode() if permit else b"\r\n")
        async with asyncio.timeout(30):
            got = await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return got.decode()


def tried(home, raw, *, answers=(["127.0.0.1"],), hosts=("host.test",), permit=True, **options):
    """Return what came back, and the world afterwards."""
    world = World(home, list(answers), **options)

    async def try_it():
        async with world.running():
            return await world.ask(raw, hosts, permit=permit)

    return asyncio.run(try_it()), world


PLAIN = "GET http://host.test:PORT/path HTTP/1.1\r\nHost: other\r\n"
TUNNEL = "CONNECT host.test:PORT HTTP/1.1\r\n"


def test_plain_http_reaches_a_host_of_the_list_without_the_permit(tmp_path):
    got, world = tried(tmp_path, PLAIN)
    assert got.endswith("heard /path")
    assert b"authorization" not in world.heard[0].lower()
    assert f"Host: host.test:{world.port}".encode() in world.heard[0]


def test_a_tunnel_carries_both_ways(tmp_path):
    world = World(tmp_path, [["127.0.0.1"]])

    async def try_it():
        async with world.running():
            reader, writer = await asyncio.open_connection(*world.at)
            parts = urlsplit(variables(tmp_path, Permit("e", (f"host.test:{world.port}",)), "x:1")["http_proxy"])
            basic = base64.b64encode(f"{parts.username}:{parts.password}".encode()).decode()
            writer.write(
                f"CONNECT host.test:{world.port} HTTP/1.1\r\nProxy-Authorization: Basic {basic}\r\n\r\n".encode()
            )
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
            writer.write(b"GET /inside HTTP/1.1\r\n\r\n")
            writer.write_eof()
            assert (await reader.read()).endswith(b"heard /inside")
            writer.close()
            await writer.wait_closed()

    asyncio.run(try_it())


@pytest.mark.parametrize("address", REFUSED)
def test_no_address_that_is_not_public_is_connected_to(tmp_path, address):
    got, world = tried(tmp_path, TUNNEL, answers=[[address]], allowed=())
    assert got.startswith("HTTP/1.1 403 host.test does not lead to public addresses only")
    assert "BRINERY_EGRESS_NETWORKS" in got
    assert not world.heard


def test_one_private_address_among_public_ones_refuses_the_host(tmp_path):
    got, world = tried(tmp_path, TUNNEL, answers=[["127.0.0.1", "10.0.0.1"]])
    assert " 403 " in got
    assert not world.heard


def test_a_host_is_looked_up_once_and_what_was_checked_is_connected_to(tmp_path):
    """A name server that answers otherwise the second time finds nobody who asks."""
    got, world = tried(tmp_path, PLAIN, answers=[["127.0.0.1"], ["127.0.0.2"]])
    assert got.endswith("heard /path")
    assert world.asked == [("host.test", world.port)]


class Lenient(AddressPolicy):
    """Takes every address for a public one, as a machine's own may be."""

    def check(self, host, port, addresses):
        pass


def test_the_machine_of_the_platform_is_refused_under_its_public_address_too(tmp_path):
    got, world = tried(tmp_path, TUNNEL, allowed=(), policy=Lenient)
    assert got.startswith("HTTP/1.1 403 host.test is the machine of the platform itself")
    assert not world.heard


def test_a_host_that_is_not_in_the_list_is_not_even_looked_up(tmp_path):
    got, world = tried(tmp_path, TUNNEL, hosts=("other.test",))
    assert got.startswith(f"HTTP/1.1 403 host.test:{world.port} is not in the egress list of this endpoint")
    assert not world.asked


def test_nobody_without_a_permit_gets_further(tmp_path):
    got, world = tried(tmp_path, TUNNEL, permit=False)
    assert got.startswith("HTTP/1.1 407 ")
    assert "Proxy-Authenticate: Basic" in got
    assert not world.asked


@pytest.mark.parametrize("raw", ["GET / HTTP/1.1\r\n", "nonsense\r\n", "CONNECT x HTTP/1.1\r\n"])
def test_what_is_no_request_is_answered_so(tmp_path, raw):
    assert tried(tmp_path, raw)[0].startswith("HTTP/1.1 400 ")


def test_headers_without_an_end_are_cut_off(tmp_path):
    long = TUNNEL + f"X: {'x' * proxies.MAX_HEAD_BYTES}\r\n"
    with contextlib.suppress(ConnectionResetError):  # what was sent beyond the limit is not read
        assert tried(tmp_path, long)[0].startswith("HTTP/1.1 431 ")


def test_a_name_without_an_address_and_a_host_that_is_away_are_told_apart(tmp_path):
    got, _ = tried(tmp_path, TUNNEL, answers=[OSError(-2, "Name or service not known")])
    assert got.startswith("HTTP/1.1 502 host.test has no address: Name or service not known")
    got, _ = tried(tmp_path, TUNNEL, answers=[["127.0.0.9"]])
    assert got.startswith("HTTP/1.1 502 host.test:")
    assert "cannot be connected to" in got


def test_one_worker_cannot_take_every_connection(tmp_path):
    world = World(tmp_path, [["127.0.0.1"]])

    async def try_it():
        async with world.running():
            silent = [await asyncio.open_connection(*world.at) for _ in range(proxies.MAX_OF_A_WORKER)]
            assert (await world.ask(TUNNEL)).startswith("HTTP/1.1 429 ")
            for _, writer in silent:
                writer.close()
                await writer.wait_closed()
            async with asyncio.timeout(30):
                while not (await world.ask(PLAIN)).endswith("heard /path"):
                    await asyncio.sleep(0.02)

    asyncio.run(try_it())


def test_a_tunnel_in_which_nothing_moves_is_closed(tmp_path):
    got, world = tried(tmp_path, TUNNEL, idle_seconds=0.3)
    assert got.startswith("HTTP/1.1 200 ")
    assert not world.heard


def test_a_worker_that_is_gone_keeps_no_connection_to_a_silent_host(tmp_path):
    async def session():
        ended = asyncio.Event()

        async def silent(reader, writer):
            with contextlib.suppress(OSError):
                while await reader.read(1):
                    pass
            ended.set()
            writer.close()

        world = World(tmp_path, [["127.0.0.1"]])
        world.host = silent
        async with world.running():
            reader, writer = await asyncio.open_connection(*world.at)
            named = urlsplit(variables(tmp_path, Permit("end_1", (f"host.test:{world.port}",)), "x:1")["http_proxy"])
            basic = base64.b64encode(f"{named.username}:{named.password}".encode()).decode()
            writer.write(
                f"CONNECT host.test:{world.port} HTTP/1.1\r\nProxy-Authorization: Basic {basic}\r\n\r\n".encode()
            )
            await reader.readuntil(b"\r\n\r\n")
            # What a killed worker does whose socket still holds bytes: a reset.
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            async with asyncio.timeout(20):
                await ended.wait()

    asyncio.run(session())
