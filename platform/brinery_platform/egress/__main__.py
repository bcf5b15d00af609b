"""``python -m brinery_platform.egress --listen 10.213.4.1:5007``: the egress proxy of a home, until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

import structlog

from brinery_platform.addresses import AddressPolicy, Resolver
from brinery_platform.egress.proxy import Proxy
from brinery_platform.logs import configure_logging
from brinery_platform.open_files import allow_connections
from brinery_platform.settings import Settings, read_settings


async def serve(settings: Settings, host: str, port: int) -> None:
    """Serve at one address until the process is asked to end.

    Raises:
        OSError: The address is taken, or not this machine's.
    """
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    resolver = Resolver()
    policy = AddressPolicy(settings.egress_allowed, setting="BRINERY_EGRESS_NETWORKS", any_port=True)
    server = await Proxy(settings.home, policy, resolver).listen(host, port)
    structlog.get_logger().info("egress.listens", host=host, port=port)
    await ended.wait()
    server.close()  # what is connected ends with the process
    resolver.close()


def main() -> int:
    """Run the proxy.

    Returns:
        The process's exit code: 0 after SIGTERM or SIGINT, 1 if it cannot listen.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True, metavar="ADDRESS:PORT")
    host, _, port = parser.parse_args().listen.rpartition(":")
    settings = read_settings()
    configure_logging(settings.log_level)
    allow_connections()
    try:
        asyncio.run(serve(settings, host, int(port)))
    except OSError as error:
        said = f"The egress proxy cannot listen on {host}:{port} ({error.strerror})."
        print(said, file=sys.stderr)  # noqa: T201 - for a person
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
