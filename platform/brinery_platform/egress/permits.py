"""What a worker may connect to, as the worker itself carries it: a signed list of hosts in the address of its proxy.

The proxy thus knows no endpoints and looks nothing up; a list that the platform has not signed is worth nothing there.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from dataclasses import dataclass
from pathlib import Path

from brinery_platform.addresses import WEB_PORTS
from brinery_platform.signing import egress_token

NOT_PROXIED = "localhost,127.0.0.1,::1"


@dataclass(frozen=True)
class Permit:
    """Who may connect, and where to.

    Args:
        endpoint_id: ``end_…``.
        hosts: See `brinery.checks.check_egress`.
    """

    endpoint_id: str
    hosts: tuple[str, ...]

    def allows(self, host: str, port: int) -> bool:
        """Return whether `port` of `host`, a name in lower case, is in the list."""
        return any(_fits(entry, host, port) for entry in self.hosts)


def variables(home: Path, permit: Permit, proxy: str) -> dict[str, str]:
    """Return the environment variables that make HTTP clients use the proxy.

    Args:
        home: The platform's home, which has the key.
        permit: What the proxy shall let through.
        proxy: Its address, ``host:port``.
    """
    text = json.dumps([permit.endpoint_id, *permit.hosts], separators=(",", ":"))
    user = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
    url = f"http://{user}:{egress_token(home, user)}@{proxy}"
    named = {"HTTP_PROXY": url, "HTTPS_PROXY": url, "NO_PROXY": NOT_PROXIED}
    return named | {name.lower(): value for name, value in named.items()}


def read_permit(home: Path, user: str, token: str) -> Permit | None:
    """Return the permit that a caller showed, None if it is not the platform's.

    Raises:
        UnavailableError: The key's file is damaged.
    """
    if not hmac.compare_digest(egress_token(home, user).encode(), token.encode()):
        return None
    try:
        endpoint_id, *hosts = json.loads(base64.urlsafe_b64decode(user + "=" * (-len(user) % 4)))
    except (binascii.Error, ValueError):  # signed by a platform of another version
        return None
    return Permit(endpoint_id, tuple(hosts))


def _fits(entry: str, host: str, port: int) -> bool:
    name, colon, wanted = entry.partition(":")
    named = host.endswith(name[1:]) if name.startswith("*.") else host == name  # no host begins with a dot
    return named and (port == int(wanted) if colon else port in WEB_PORTS)
