"""The network of a home's workers: theirs alone, and none of them reaches another one in it."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

from brinery.errors import ConflictError, DeploymentError
from brinery_platform.runtimes.docker import labels
from brinery_platform.runtimes.docker.engine import Engine, Facts

PREFIX: Final = 22
"""1,021 workers: no bridge of Linux takes more than 1,023."""
OPTIONS: Final = {
    # Packets from one worker to another are dropped on the bridge.
    "com.docker.network.bridge.enable_icc": "false",
}
ROUTES: Final = Path("/proc/net/route")


class WorkerNetwork:
    """The network that a home's workers and builds are connected to, made when it is first needed.

    Args:
        engine: Where it is.
        mark: See `labels.HOME`.
        cidr: The addresses that networks of workers may take.
    """

    def __init__(self, engine: Engine, mark: str, cidr: IPv4Network) -> None:
        self._engine = engine
        self._mark = mark
        self._cidr = cidr
        self._lock = threading.Lock()
        self.name = f"brinery-{mark}"

    def ensure(self) -> str:
        """Return the network's name; make it where it is missing.

        Raises:
            DeploymentError: No part of the network that the settings name is free.
        """
        with self._lock:
            if not self._find():
                self._make()
            return self.name

    def remove(self) -> bool:
        """Remove it; return False while anything is connected to it."""
        return all(self._engine.remove_network(network["Id"]) for network in self._find())

    def _find(self) -> list[Facts]:
        return self._engine.networks({labels.HOME: self._mark, labels.KIND: "workers"})

    def _make(self) -> None:
        taken = list(_routed())
        for subnet in itertools.islice(_parts(self._cidr), 4096):
            if any(subnet.overlaps(other) for other in taken):
                continue
            with contextlib.suppress(ConflictError):
                self._engine.create_network(
                    self.name,
                    subnet=str(subnet),
                    labels={labels.HOME: self._mark, labels.KIND: "workers"},
                    options=OPTIONS,
                )
                return
            if self._find():  # another process of this home has just made it
                return
        raise DeploymentError(
            f"No part of {self._cidr} is free for the workers' network; set BRINERY_WORKER_CIDR to private addresses "
            "that nothing else here uses, or remove networks that nobody needs (`docker network prune`)."
        )


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
