"""What a platform needs before its processes start: services that answer, a migrated database, an administrator's key.

`brinery up` and `brinery setup` do it with the same steps; each may be repeated, and of several at once one does it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import redis

from brinery.config import PROFILE, read_profile, write_profile
from brinery.errors import BrineryError, ConflictError, InvalidRequestError, UnavailableError
from brinery_platform.database import migrate, open_engine
from brinery_platform.services import Services
from brinery_platform.store import hash_key

ADMIN: Final = "admin"
LOOK_SECONDS: Final = 0.5

Say = Callable[[str], None]


def prepare(services: Services, say: Say, *, wait_seconds: float = 0.0) -> None:
    """Check Redis, the object store and the database, and bring the database to its newest form.

    Args:
        services: The platform's parts.
        say: Takes lines for a person.
        wait_seconds: How long each of them may take to answer, as while it starts; what it says meanwhile is told.

    Raises:
        InvalidRequestError: A setting is wrong, with its name.
        UnavailableError: Something that a setting names does not answer.
    """
    url = services.settings.database
    open_engine(url).dispose()  # nothing is connected yet: a URL that can never be right is told without waiting
    for check in (lambda: _check_redis(services), lambda: _check_objects(services), lambda: _migrate(url)):
        _patiently(check, say, wait_seconds)


def ensure_admin_key(services: Services, say: Say) -> str:
    """Have a live administrator's key: the one of ``BRINERY_ADMIN_KEY``, else the profile's, else a new one.

    A new one is for the caller to keep; one that died before that makes another.

    Returns:
        The key's text.

    Raises:
        ConflictError: The key of ``BRINERY_ADMIN_KEY`` was revoked, or is an ordinary one.
    """
    given = services.settings.admin_key.get_secret_value()
    admins = {key.sha256 for key in services.store.live_keys() if key.admin}
    if given:
        if hash_key(given) not in admins:
            try:
                services.store.create_key(ADMIN, "BRINERY_ADMIN_KEY", admin=True, text=given)
            except ConflictError:
                if hash_key(given) not in {key.sha256 for key in services.store.live_keys() if key.admin}:
                    raise ConflictError(
                        "BRINERY_ADMIN_KEY is a key that was revoked, or one without an administrator's rights; "
                        "choose another one."
                    ) from None
            say("The key of BRINERY_ADMIN_KEY is an administrator's now")
        return given
    profile = read_profile(services.settings.home)
    if profile is not None and hash_key(profile.api_key) in admins:
        return profile.api_key
    _, text = services.store.create_key(ADMIN, "made by brinery", admin=True)
    say(f"Wrote an admin key to {services.settings.home / PROFILE}")
    return text


def set_up(services: Services, say: Say, *, wait_seconds: float) -> None:
    """Do all that has to be done once before gateway and controller are started alone, as in containers.

    A key that was given by ``BRINERY_ADMIN_KEY`` is written nowhere but, as a hash, into the database.

    Args:
        services: The platform's parts.
        say: Takes lines for a person.
        wait_seconds: See `prepare`.

    Raises:
        InvalidRequestError: A setting is wrong, with its name.
        UnavailableError: Something that a setting names does not answer.
        ConflictError: See `ensure_admin_key`.
    """
    settings = services.settings
    if not settings.redis_url.get_secret_value():
        raise InvalidRequestError(
            "BRINERY_REDIS_URL is empty: the embedded Redis is there under `brinery up` only, which needs no setup."
        )
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    prepare(services, say, wait_seconds=wait_seconds)
    text = ensure_admin_key(services, say)
    if not settings.admin_key.get_secret_value():
        write_profile(settings.home, settings.url, text)
    say("Brinery is set up: Redis and the object store answer, the database is in its newest form")


def _patiently(check: Callable[[], None], say: Say, wait_seconds: float) -> None:
    deadline = time.monotonic() + wait_seconds
    told = ""
    while True:
        try:
            return check()
        except UnavailableError as error:
            if time.monotonic() >= deadline:
                raise
            if error.message != told:
                say(f"Waiting: {error.message}")
            told = error.message
        time.sleep(LOOK_SECONDS)


def _check_redis(services: Services) -> None:
    try:
        services.redis.ping()
    except ValueError:
        raise InvalidRequestError(
            "BRINERY_REDIS_URL is no Redis URL; write redis://[:password@]host:port/database, rediss://… or unix://…"
        ) from None
    except redis.RedisError as error:
        raise UnavailableError(
            f"BRINERY_REDIS_URL: the Redis there does not answer ({error}); start it, or unset the variable to use "
            "the embedded one."
        ) from None


def _check_objects(services: Services) -> None:
    try:
        services.objects.prepare()
    except UnavailableError as error:
        raise UnavailableError(f"BRINERY_OBJECTS_URL: {error.message}") from None
    except BrineryError as error:
        raise InvalidRequestError(f"BRINERY_OBJECTS_URL: {error.message}") from None


def _migrate(url: str) -> None:
    try:
        migrate(url)
    except InvalidRequestError as error:  # most of them are a server that is not there, or not yet
        raise UnavailableError(error.message) from None
