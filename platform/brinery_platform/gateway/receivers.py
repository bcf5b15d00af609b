"""Who receives webhooks now: keeps receivers that are slow from taking every lane of the others."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

LANES: Final = 32
"""Webhooks that one gateway sends at once."""
SLOW_HOST_LANES: Final = 8
SLOW_OWNER_LANES: Final = 16
SLOW_SECONDS: Final = 1.0
"""A receiver that takes longer is slow, and stays so for `REMEMBERED_SECONDS`."""
REMEMBERED_SECONDS: Final = 60.0

_Key = tuple[str, str]


class Receivers:
    """Counts the tries of each owner and host that are under way; belongs to one event loop."""

    def __init__(self) -> None:
        self._busy: Counter[_Key] = Counter()
        self._slow_until: dict[_Key, float] = {}

    def admits(self, owner: str, host: str) -> bool:
        """Return whether another try may begin now; those that are quick may have every lane."""
        now = asyncio.get_running_loop().time()
        limits = zip(_keys(owner, host), (SLOW_OWNER_LANES, SLOW_HOST_LANES), strict=True)
        return not any(self._busy[key] >= most and self._slow_until.get(key, 0.0) > now for key, most in limits)

    @contextmanager
    def engaged(self, owner: str, host: str) -> Iterator[None]:
        """Count a try while it lasts, and remember when it was slow."""
        keys = _keys(owner, host)
        self._busy.update(keys)
        timer = asyncio.get_running_loop().call_later(SLOW_SECONDS, self._remember, keys)
        try:
            yield
        finally:
            timer.cancel()
            for key in keys:
                self._busy[key] -= 1
                if not self._busy[key]:
                    del self._busy[key]

    def _remember(self, keys: tuple[_Key, _Key]) -> None:
        now = asyncio.get_running_loop().time()
        self._slow_until = {key: until for key, until in self._slow_until.items() if until > now}
        self._slow_until.update(dict.fromkeys(keys, now + REMEMBERED_SECONDS))


def _keys(owner: str, host: str) -> tuple[_Key, _Key]:
    return (owner, ""), (owner, host)
