"""The client that is used when none is given; in a worker, where HTTP is no part of the SDK, how to get it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from brinery.errors import BrineryError

if TYPE_CHECKING:
    from brinery.client import Client


def chosen_client(client: Client | None, what: str) -> Client:
    """Return `client`, or the one that the environment and the profile name.

    Args:
        client: What the caller chose.
        what: What it is for, such as an endpoint's name; for the error's text.

    Raises:
        AuthenticationError: No key is known.
        BrineryError: The libraries for it are not installed, as in a worker.
    """
    try:
        from brinery.client import default_client
    except ModuleNotFoundError as error:
        raise BrineryError(
            f"{what} needs the platform where the SDK's {error.name!r} is missing, so probably in a worker. If this "
            "endpoint calls another one, add 'httpx' and 'tenacity' to its requirements. If a module deploys or calls "
            'while it is imported, move that under `if __name__ == "__main__":`.'
        ) from None
    return client or default_client()
