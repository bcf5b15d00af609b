"""Who may connect to the gateway: everybody but workers, who share this machine's addresses without being its users."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address, IPv4Network

from brinery_platform.addresses import decisive
from brinery_platform.gateway.one_piece import OnePieceProtocol


def refusing(network: IPv4Network) -> type[OnePieceProtocol]:
    """Return uvicorn's protocol, which closes connections out of a network at once, before it reads a byte.

    Args:
        network: The workers'; see ``BRINERY_WORKER_CIDR``.
    """

    class Refusing(OnePieceProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
            super().connection_made(transport)
            if self.client is not None:
                peer = decisive(self.client[0])
                if isinstance(peer, IPv4Address) and peer in network:
                    transport.abort()

    return Refusing
