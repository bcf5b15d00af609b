"""Who calls: API keys in memory, read from SQL twice a second, so that a revoked key is dead within a second."""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from dataclasses import dataclass
from typing import Final

import structlog

from brinery.errors import AuthenticationError, UnavailableError
from brinery_platform.store import Store, hash_key

REFRESH_SECONDS: Final = 0.5
STALE_SECONDS: Final = 5.0

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever holds a valid key.

    Args:
        key_id: ``key_…``.
        owner: Whose endpoints, bundles and tasks the key may see.
        admin: Whether it may manage keys.
    """

    key_id: str
    owner: str
    admin: bool


class KeyTable:
    """Every live key by its SHA-256.

    Args:
        store: Where the keys are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._callers: dict[str, Caller] = {}
        self._refreshed_at = -STALE_SECONDS

    @property
    def fresh(self) -> bool:
        """Whether the keys were read from SQL lately."""
        return time.monotonic() - self._refreshed_at < STALE_SECONDS

    def refresh(self) -> None:
        """Read the keys now."""
        keys = self._store.live_keys()
        self._callers = {key.sha256: Caller(key.id, key.owner, key.admin) for key in keys}
        self._refreshed_at = time.monotonic()

    async def run(self) -> None:
        """Refresh for ever; while SQL is away, the last keys stay valid."""
        away = False
        while True:
            try:
                await asyncio.to_thread(self.refresh)
                away = False
            except UnavailableError as error:
                if not away:
                    logger.warning("database_is_away", error=str(error), cure="calls go on with the last keys")
                away = True
            await asyncio.sleep(REFRESH_SECONDS)

    def authenticate(self, authorization: bytes) -> Caller:
        """Return who sent an ``Authorization`` header; no I/O.

        Args:
            authorization: ``Bearer <key>``, or ``Basic`` with the key as user name; empty where none came.

        Raises:
            AuthenticationError: No live key is in it.
            UnavailableError: The keys have not been read yet, so nobody can say.
        """
        scheme, _, value = authorization.partition(b" ")
        scheme = scheme.lower()
        if scheme == b"bearer":
            text = value.strip()
        elif scheme == b"basic":
            try:
                text = base64.b64decode(value.strip(), validate=True).partition(b":")[0]
            except binascii.Error:
                text = b""
        else:
            text = b""
        caller = self._callers.get(hash_key(text.decode("latin-1"))) if text else None
        if caller is None and self._refreshed_at < 0:
            raise UnavailableError("The gateway has just started and has not read its keys yet; try again shortly.")
        if caller is None:
            raise AuthenticationError
        return caller
