"""The head of a request to a proxy: whom it is for, who asks, and what of it goes on."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

_HOST: Final = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?")
_METHOD: Final = re.compile(r"[A-Z]{1,20}")
_HEADER: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_OF_ONE_HOP: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-authorization", b"proxy-connection", b"te", b"upgrade", b"host"}
)


class BadHeadError(Exception):
    """That is no request for a proxy; the text says why."""


@dataclass(frozen=True)
class Head:
    """One request to the proxy.

    Args:
        host: Name or IPv4 address, in lower case, without a dot at its end.
        port: 1 to 65535.
        onward: The head as the host gets it, of plain HTTP; None of a tunnel.
        user: Of basic authentication; empty without.
        token: Its password.
    """

    host: str
    port: int
    onward: bytes | None
    user: str
    token: str


def read_head(raw: bytes) -> Head:
    r"""Take a head apart.

    Args:
        raw: From the first line to the empty one, both included, lines ended by ``\r\n``.

    Raises:
        BadHeadError: It is not a request for a proxy.
    """
    first, *lines = raw.removesuffix(b"\r\n\r\n").split(b"\r\n")
    try:
        method, target, version = first.decode("ascii").split(" ")
    except ValueError:
        raise BadHeadError("the first line is no request") from None
    if not _METHOD.fullmatch(method) or not target.isprintable() or version not in {"HTTP/1.0", "HTTP/1.1"}:
        raise BadHeadError("the first line is no request")
    headers = []
    for line in lines:
        found = _HEADER.fullmatch(line)
        if found is None:
            raise BadHeadError("a header is none")
        headers.append((found[1].lower(), line, found[2]))
    user, token = _authorization(next((value for name, _, value in headers if name == b"proxy-authorization"), b""))
    if method == "CONNECT":
        host, port = _address(f"//{target}", None)
        return Head(host, port, None, user, token)
    if not target.startswith("http://"):
        raise BadHeadError("it is for no host: ask for http://…, or open a tunnel with CONNECT")
    host, port = _address(target, 80)
    parts = urlsplit(target)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    kept = [line for name, line, _ in headers if name not in _OF_ONE_HOP]
    ours = [f"{method} {path} HTTP/1.1".encode(), f"Host: {parts.netloc}".encode()]
    return Head(host, port, b"\r\n".join([*ours, *kept, b"Connection: close", b"", b""]), user, token)


def _address(url: str, usual: int | None) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").removesuffix("."), parts.port or usual
    except ValueError:
        raise BadHeadError("its host or port is none") from None
    # The first: what is written behind the host of a tunnel.
    if parts.scheme == "" and (parts.path or parts.query or parts.fragment):
        raise BadHeadError("its host or port is none")
    if "@" in parts.netloc or not _HOST.fullmatch(host) or port is None:
        raise BadHeadError("its host or port is none")
    return host, port


def _authorization(value: bytes) -> tuple[str, str]:
    scheme, _, encoded = value.partition(b" ")
    if scheme.lower() != b"basic":
        return "", ""
    try:
        user, _, token = base64.b64decode(encoded.strip(), validate=True).decode("ascii").partition(":")
    except (binascii.Error, ValueError):
        return "", ""
    return user, token
