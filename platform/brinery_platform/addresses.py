"""Which addresses webhooks, and workers with a list, may reach, and connections to exactly those that were checked."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

import httpcore

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Finds a host's addresses as text; raises `OSError` where it has none."""

WEB_PORTS: Final = frozenset({80, 443})
FIRST_FREE_PORT: Final = 1024
MAX_ADDRESSES: Final = 4
"""Addresses of one name that are tried one after the other."""
_LOOKUPS: Final = 64
"""Threads at most, made when they are needed: a lookup that nobody answers holds its thread longer than its try."""
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
_NAT64: Final = IPv6Network("64:ff9b::/96")
_REFUSED: Final = (
    IPv4Network("192.88.99.0/24"),  # relays of 6to4 (RFC 7526)
    IPv4Network("168.63.129.16/32"),  # what a host of Azure tells its machines; public by its number only
)


class AddressRefusedError(httpcore.ConnectError):
    """The address is not one that may be reached; its text says why and what allows it."""


class AddressPolicy:
    """Lets strangers reach global unicast addresses, and networks that the operator named.

    Args:
        allowed: Networks that may be reached although they are not global; every port of them may be, too.
        setting: What names them, for an error's text.
        any_port: Whether every port of the others may be reached as well, not only those that the web uses.
    """

    def __init__(
        self,
        allowed: Iterable[Network] = (),
        *,
        setting: str = "BRINERY_WEBHOOK_NETWORKS",
        any_port: bool = False,
    ) -> None:
        self._allowed = tuple(allowed)
        self._setting = setting
        self._any_port = any_port

    def names(self, address: str) -> bool:
        """Return whether the operator named a network that the address is in."""
        return any(decisive(address) in network for network in self._allowed)

    def check(self, host: str, port: int, addresses: Sequence[str]) -> None:
        """Refuse a host unless each of its addresses may be reached.

        Args:
            host: As the URL names it, for the error's text.
            port: Below 1024 only those of HTTP and HTTPS, unless any may be.
            addresses: All that the name stands for.

        Raises:
            AddressRefusedError: One may not be, or there is none.
        """
        if not addresses:
            raise AddressRefusedError(f"{host} has no address.")
        if not 0 < port < 65536:
            raise AddressRefusedError(f"{port} is no port.")
        for address in addresses:
            if self.names(address):
                continue
            if not _is_global(decisive(address)):
                raise AddressRefusedError(  # which address it is, would tell strangers of the network here
                    f"{host} does not lead to public addresses only; an operator can allow its network with "
                    f"{self._setting}."
                )
            if not self._any_port and port not in WEB_PORTS and port < FIRST_FREE_PORT:
                raise AddressRefusedError(f"Port {port} belongs to another service; use 80, 443, or one from 1024 on.")


def decisive(text: str) -> Address:
    """Return the address that decides: IPv6 addresses that stand for an IPv4 one are judged by that.

    Args:
        text: As a resolver writes it; a zone (``%eth0``) is left out.
    """
    address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _is_global(address: Address) -> bool:
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    special = address.is_multicast or address.is_reserved or any(address in network for network in _REFUSED)
    return address.is_global and not special


class Resolver:
    """Asks the system for addresses, in threads of its own: a name server that hangs holds up nothing else."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="lookup")

    async def __call__(self, host: str, port: int) -> list[str]:
        """Return a host's addresses, each once, in the system's order of preference.

        Raises:
            OSError: It has none, or nobody answered.
        """
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, _look_up, host, port)
        return list(dict.fromkeys(found))

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _look_up(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(address[0]) for *_, address in found]


class PinnedBackend(httpcore.AsyncNetworkBackend):
    """Resolves a host once, checks every address, and connects to one of exactly those.

    Args:
        policy: What may be reached.
        resolve: Finds a host's addresses.
    """

    def __init__(self, policy: AddressPolicy, resolve: Resolve) -> None:
        self._policy = policy
        self._resolve = resolve
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first checked address that answers; `timeout` seconds bound looking up and connecting.

        Raises:
            AddressRefusedError: The policy refuses the host.
            httpcore.ConnectError: It has no address, or none answers.
            httpcore.ConnectTimeout: None answered in time.
        """
        try:
            async with asyncio.timeout(timeout):
                addresses = await find_addresses(self._policy, self._resolve, host, port)
                failed: Exception = httpcore.ConnectError(f"{host} has no address.")
                for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
                    # Each may take its share of the time, so that one that is silent leaves some for the others.
                    share = None if timeout is None else timeout / left
                    try:
                        return await self._network.connect_tcp(address, port, share, local_address, socket_options)
                    except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                        failed = error
                raise failed
        except TimeoutError:
            raise httpcore.ConnectTimeout(f"{host} did not answer in time.") from None


async def find_addresses(policy: AddressPolicy, resolve: Resolve, host: str, port: int) -> list[str]:
    """Look a host up once, and return the addresses to try, all of them checked.

    Raises:
        AddressRefusedError: The policy refuses the host.
        httpcore.ConnectError: It has no address.
    """
    try:
        addresses = await resolve(host, port)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no valid name"
        raise httpcore.ConnectError(f"{host} has no address: {reason}.") from error
    policy.check(host, port, addresses)
    return list(addresses[:MAX_ADDRESSES])
