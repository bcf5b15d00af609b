"""The networks of a home's workers: theirs alone, and none of them reaches another one in it.

One lets its containers out to the internet, the other one lets them nowhere. Neither leads to the link-local addresses,
where clouds tell a machine its secrets: each container has one of its own, so that it looks for all of them on its
bridge, where nobody has them.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Final

from brinery.errors import ConflictError, DeploymentError
from brinery_platform.runtimes.docker import labels
from brinery_platform.runtimes.docker.engine import Engine, Facts

PREFIX: Final = 22
"""1,021 workers: no bridge of Linux takes more than 1,023."""
OPTIONS: Final = {
    # Packets from one worker to another are dropped on the bridge.
    "com.docker.network.bridge.enable_icc": "false",
}
LINK_LOCAL: Final = "169.254.0.1"
"""Of every container. The route to 169.254.0.0/16 that comes with it ends at the bridge; nobody asks for this one."""
NOWHERE: Final = "127.0.0.1"
"""A name server of containers that shall find no name: their own loopback, where nothing answers."""
ROUTES: Final = Path("/proc/net/route")


class WorkerNetwork:
    """The networks that a home's workers and builds are connected to, each made when it is first needed.

    Args:
        engine: Where they are.
        mark: See `labels.HOME`.
        cidr: The addresses that networks of workers may take.
    """

    def __init__(self, engine: Engine, mark: str, cidr: IPv4Network) -> None:
        self._engine = engine
        self._mark = mark
        self._cidr = cidr
        self._lock = threading.Lock()

    def joined(self, *, internal: bool = False) -> Facts:
        """Return the parts of the body that creates a container which is to be connected; see `merged`.

        Args:
            internal: Whether nothing but this machine's own addresses may be reached, and no name be looked up.

        Raises:
            DeploymentError: No part of the network that the settings name is free.
        """
        self._ensure(internal=internal)
        name = self._name(internal=internal)
        host: Facts = {"NetworkMode": name}
        if internal:
            host |= {"Dns": [NOWHERE], "DnsOptions": ["timeout:1", "attempts:1"]}  # or it waits 10 s for nothing
        place = {"IPAMConfig": {"LinkLocalIPs": [LINK_LOCAL]}}
        return {"HostConfig": host, "NetworkingConfig": {"EndpointsConfig": {name: place}}}

    def address(self) -> str:
        """Return this machine's address in the internal network, which is made where it is missing."""
        return str(self._ensure(internal=True)["IPAM"]["Config"][0]["Gateway"])

    def _ensure(self, *, internal: bool) -> Facts:
        with self._lock:
            found = self._find(internal=internal)
            if found is None:
                self._make(internal=internal)
                found = self._find(internal=internal)
        if found is None:
            raise DeploymentError("The workers' network is removed by something else while it is made.")
        return found

    def _find(self, *, internal: bool) -> Facts | None:
        kind = "inner" if internal else "workers"
        return next(iter(self._engine.networks({labels.HOME: self._mark, labels.KIND: kind})), None)

    def _make(self, *, internal: bool) -> None:
        taken = list(_routed())
        for subnet in itertools.islice(_parts(self._cidr), 4096):
            if any(subnet.overlaps(other) for other in taken):
                continue
            with contextlib.suppress(ConflictError):
                self._engine.create_network(
                    self._name(internal=internal),
                    subnet=str(subnet),
                    gateway=str(subnet[1]),
                    internal=internal,
                    labels={labels.HOME: self._mark, labels.KIND: "inner" if internal else "workers"},
                    options=OPTIONS,
                )
                return
            if self._find(internal=internal):  # another process of this home has just made it
                return
        raise DeploymentError(
            f"No part of {self._cidr} is free for the workers' network; set BRINERY_WORKER_CIDR to private addresses "
            "that nothing else here uses, or remove networks that nobody needs (`docker network prune`)."
        )

    def _name(self, *, internal: bool) -> str:
        return f"brinery-{self._mark}{'-inner' if internal else ''}"


def merged(config: Facts, part: Facts) -> Facts:
    """Return the body that creates a container, with a part of it added: settings of the host, and variables, too."""
    own: list[str] = part.get("Env", [])
    names = {variable.partition("=")[0] for variable in own}
    env: list[Any] = [one for one in config.get("Env", []) if one.partition("=")[0] not in names]
    return config | part | {"HostConfig": config["HostConfig"] | part["HostConfig"], "Env": [*env, *own]}


def _parts(cidr: IPv4Network) -> Iterator[IPv4Network]:
    if cidr.prefixlen >= PREFIX:
        return iter([cidr])
    return cidr.subnets(new_prefix=PREFIX)


def _routed() -> Iterator[IPv4Network]:
    """Yield the networks that this machine has routes to, the default route aside."""
    with contextlib.suppress(OSError):
        for line in ROUTES.read_text().splitlines()[1:]:
            fields = line.split()
            address, mask = (int.from_bytes(bytes.fromhex(fields[place]), "little") for place in (1, 7))
            if mask:
                yield IPv4Network((address, mask.bit_count()))
