"""Where the platform is and with which key to call it: environment variable > profile file > default."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from brinery.errors import AuthenticationError, InvalidRequestError

DEFAULT_URL: Final = "http://127.0.0.1:5050"
PROFILE: Final = "profile.json"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """An address and the key that belongs to it.

    Args:
        url: Base URL of a gateway, no trailing slash.
        api_key: Sent as ``Authorization: Bearer``; not in the repr.
    """

    url: str
    api_key: str = field(repr=False)


def brinery_home() -> Path:
    """Return ``$BRINERY_HOME``, ``~/.brinery`` by default."""
    return Path(os.environ.get("BRINERY_HOME") or "~/.brinery").expanduser().absolute()


def debugging() -> bool:
    """Whether ``BRINERY_DEBUG=1`` asks for whole tracebacks."""
    return os.environ.get("BRINERY_DEBUG", "") not in {"", "0"}


def read_config() -> Profile:
    """Return the gateway's URL and the key to use with it.

    ``BRINERY_URL`` and ``BRINERY_API_KEY`` win over the profile in the home. The profile's key goes to the profile's
    own URL only, never to another one that the environment names.

    Raises:
        AuthenticationError: There is no key for that URL.
        InvalidRequestError: The URL or the profile cannot be read.
    """
    profile = read_profile(brinery_home())
    url = check_url(os.environ.get("BRINERY_URL") or (profile.url if profile else DEFAULT_URL))
    api_key = os.environ.get("BRINERY_API_KEY", "").strip()
    if api_key:
        return Profile(url=url, api_key=api_key)
    if profile is None:
        raise AuthenticationError(
            f"There is no API key for {url}: start the platform on this machine with `brinery up` (it writes "
            f"{brinery_home() / PROFILE}), or set BRINERY_API_KEY."
        )
    if _origin(profile.url) != _origin(url):
        raise AuthenticationError(
            f"BRINERY_URL is {url}, but the key in {brinery_home() / PROFILE} belongs to {profile.url}; set "
            "BRINERY_API_KEY as well."
        )
    return Profile(url=url, api_key=profile.api_key)


def read_profile(home: Path) -> Profile | None:
    """Return the profile in `home`, or None when there is none.

    Raises:
        InvalidRequestError: The file is there but is no profile.
    """
    path = home / PROFILE
    try:
        data = json.loads(path.read_bytes())
        profile = Profile(url=data["url"], api_key=data["api_key"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidRequestError(
            f"{path} cannot be read as a profile ({type(error).__name__}: {error}); delete it, and `brinery up` writes "
            "a new one."
        ) from None
    return Profile(url=check_url(profile.url), api_key=profile.api_key)


def write_profile(home: Path, url: str, api_key: str) -> Path:
    """Write the profile in `home`, readable by its user only; readers see the old file or the new one, whole.

    Args:
        home: Folder; made when missing.
        url: Base URL of the gateway.
        api_key: The key for it.

    Returns:
        The file's path.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = home / PROFILE
    new = home / f"{PROFILE}.{secrets.token_hex(4)}"
    text = json.dumps({"url": check_url(url), "api_key": api_key}, indent=2) + "\n"
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    folder = os.open(home, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return path


def check_url(url: str) -> str:
    """Return `url` without a trailing slash.

    Raises:
        InvalidRequestError: It is no http(s) URL, or ends in the API's ``/v1``.
    """
    parts = urlsplit(url) if isinstance(url, str) else None
    if parts is None or parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InvalidRequestError(f"{url!r} is no URL of a gateway; it looks like {DEFAULT_URL} (see BRINERY_URL).")
    base = url.rstrip("/")
    if base.endswith("/v1"):
        raise InvalidRequestError(f"{url!r} ends in /v1; leave that off: {base.removesuffix('/v1')} (see BRINERY_URL).")
    return base


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    host = "127.0.0.1" if parts.hostname == "localhost" else str(parts.hostname)
    return parts.scheme, host, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
