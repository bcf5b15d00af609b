"""How bytes travel to a gateway, and how what goes wrong on the way becomes one of our errors."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final, Protocol, TypeVar

import httpx
from tenacity import retry_if_exception_type, stop_before_delay, wait_exponential, wait_random

from brinery.errors import BrineryError, UnavailableError, UpstreamTimeoutError, error_from_json, error_from_worker
from brinery.spec import HEADER_ANSWERED_BY

KEEPALIVE_SECONDS: Final = 4.0
"""Below the 5 s after which servers commonly close an idle connection, so that no POST races that close."""
MAX_CONNECTIONS: Final = 1000
"""How many connections the threads of a process may have open, ..."""
MAX_IDLE: Final = 100
"""... and how many of them may be idle."""
ASYNC_CONNECTIONS: Final = 200
"""How many connections one event loop may have open."""


def pool_arguments(url: str, *, by_proxy: bool) -> dict[str, Any]:
    """Return what gives an ``httpx.Client`` its connections, for threads; see `_arguments`."""
    arguments = _arguments(url, max_connections=MAX_CONNECTIONS, by_proxy=by_proxy)
    return arguments if by_proxy else {"transport": httpx.HTTPTransport(**arguments)}


def async_pool_arguments(url: str, *, by_proxy: bool) -> dict[str, Any]:
    """Return the same for an ``httpx.AsyncClient``, for one event loop."""
    arguments = _arguments(url, max_connections=ASYNC_CONNECTIONS, by_proxy=by_proxy)
    return arguments if by_proxy else {"transport": httpx.AsyncHTTPTransport(**arguments)}


def retry_arguments(patience_seconds: float) -> dict[str, Any]:
    """Return how to repeat what is safe to repeat: with growing pauses, as long as the platform is away.

    Args:
        patience_seconds: When to give up and raise the last error.

    Returns:
        Keyword arguments of tenacity's ``Retrying`` and ``AsyncRetrying``.
    """
    return {
        "retry": retry_if_exception_type((UnavailableError, UpstreamTimeoutError)),
        "wait": wait_exponential(multiplier=0.1, max=5.0) + wait_random(0.0, 0.1),
        "stop": stop_before_delay(patience_seconds),
        "reraise": True,
    }


def _arguments(url: str, *, max_connections: int, by_proxy: bool) -> dict[str, Any]:
    """Return the settings of httpx's transports; its clients, which take the proxy's side themselves, know all but one.

    A client that is given a transport asks no proxy, whatever the environment says.
    """
    arguments: dict[str, Any] = {
        "verify": tls(used=by_proxy or url.startswith("https://")),  # the way to a proxy may be TLS, too
        "limits": httpx.Limits(
            max_connections=max_connections, max_keepalive_connections=MAX_IDLE, keepalive_expiry=KEEPALIVE_SECONDS
        ),
    }
    return arguments if by_proxy else {**arguments, "socket_options": socket_options()}


@lru_cache(maxsize=2)
def tls(*, used: bool) -> ssl.SSLContext:
    """Return the TLS settings, made once; without https an empty context, because a real one takes 20 ms to load."""
    return httpx.create_ssl_context() if used else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def socket_options() -> list[tuple[int, int, int]]:
    """Let the kernel find out within about a minute that the other machine is gone, however long a call may take."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Turn the connection's errors into ours.

    Raises:
        UnavailableError: Nothing answers at `url`, or the connection was lost on the way.
        UpstreamTimeoutError: No answer came in time.
    """
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise nobody(url, error) from error
    except httpx.ReadTimeout as error:
        raise too_late(url) from error
    except httpx.TransportError as error:
        raise lost(url, error) from error


def nobody(url: str, error: Exception) -> UnavailableError:
    """Return the error of a connection that could not be made."""
    return UnavailableError(f"Nothing answers at {url} ({error}); start it with `brinery up`.", url=url)


def too_late(url: str) -> UpstreamTimeoutError:
    """Return the error of an answer that did not come in time."""
    return UpstreamTimeoutError(f"{url} did not answer in time; look at its log, then try again.", url=url)


def lost(url: str, error: Exception) -> UnavailableError:
    """Return the error of a connection that ended before the answer."""
    reason = str(error) or type(error).__name__
    return UnavailableError(
        f"The connection to {url} was lost ({reason}); what was asked may or may not have happened.", url=url
    )


class Response(Protocol):
    """What every answer has, whichever library read it."""

    @property
    def status_code(self) -> int:
        """HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """By their names in lower case."""

    @property
    def content(self) -> bytes:
        """The whole body."""

    def json(self) -> Any:
        """Return the body's JSON value; raises ValueError if it is none."""


AnyResponse = TypeVar("AnyResponse", bound=Response)


def checked(response: AnyResponse) -> AnyResponse:
    """Return a successful response.

    Raises:
        BrineryError: The error that another response carries, as its own class.
    """
    if 200 <= response.status_code < 300:
        return response
    if HEADER_ANSWERED_BY.lower() in response.headers:
        raise error_from_worker(response.content, status=response.status_code)
    try:
        body = response.json()
    except ValueError:
        body = None
    error = error_from_json(body, status=response.status_code)
    if type(error) is BrineryError and response.status_code in {502, 503, 504}:
        # A proxy in front of the gateway speaks for it while it restarts.
        error = UnavailableError(f"The gateway is away (HTTP {response.status_code}); try again shortly.")
    if (pause := response.headers.get("retry-after", "")).isdecimal():  # a proxy may send a date instead
        error.context.setdefault("retry_after_seconds", int(pause))
    raise error
