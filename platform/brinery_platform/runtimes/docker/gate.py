"""The way out of the internal network: where the egress proxy listens there, and what makes workers use it."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Final

from brinery.errors import DeploymentError
from brinery_platform.egress.permits import Permit, variables
from brinery_platform.runtimes.base import EGRESS_PROXY, PlatformSpec, Runtime
from brinery_platform.runtimes.docker.network import WorkerNetwork

PORT: Final = 5007
"""On this machine's address in the network of one home, so that two homes do not meet."""
START_SECONDS: Final = 20.0
_CONNECT_SECONDS: Final = 2.0
_LOOK_AGAIN_SECONDS: Final = 0.02


class Gate:
    """The egress proxy as the workers of a home meet it.

    Args:
        home: The platform's home.
        network: The workers' networks.
    """

    def __init__(self, home: Path, network: WorkerNetwork) -> None:
        self._home = home
        self._network = network

    def spec(self) -> PlatformSpec:
        """Return the proxy as it is to be run."""
        place = ("--listen", f"{self._network.address()}:{PORT}")
        return PlatformSpec(id=EGRESS_PROXY, kind="egress", module="brinery_platform.egress", arguments=place)

    def open(self, runtime: Runtime) -> None:
        """Return when the proxy listens; start it where it does not.

        Raises:
            DeploymentError: It does not come up; the text has its last words.
        """
        spec, address = self.spec(), self._network.address()
        if runtime.poll(EGRESS_PROXY) is None and _listens(address):
            return
        runtime.stop(EGRESS_PROXY, grace_seconds=0)  # one that listens in a network that is gone
        runtime.start(spec)
        deadline = time.monotonic() + START_SECONDS
        while not _listens(address):
            if runtime.poll(EGRESS_PROXY) is not None or time.monotonic() > deadline:
                last = " ".join(list(runtime.logs(EGRESS_PROXY, tail=1)))
                raise DeploymentError(f"The egress proxy does not come up at {address}:{PORT}. {last}".strip())
            time.sleep(_LOOK_AGAIN_SECONDS)

    def variables(self, endpoint_id: str, hosts: tuple[str, ...]) -> list[str]:
        """Return the variables of a worker that may reach these hosts, as ``NAME=value``."""
        proxy = f"{self._network.address()}:{PORT}"
        named = variables(self._home, Permit(endpoint_id, hosts), proxy)
        return [f"{name}={value}" for name, value in named.items()]


def _listens(address: str) -> bool:
    try:
        socket.create_connection((address, PORT), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
