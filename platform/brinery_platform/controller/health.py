"""How a worker is, as it was last heard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Health:
    """What a worker's supervisor says, or an image itself.

    Args:
        state: ``unreachable``, or one of the supervisor's states; see `ready_route.ask_image` for those of an image.
        error: The wire form of why it failed, where it did.
        detail: Of an image, what it answers instead of being ready.
    """

    state: str
    error: dict[str, Any] | None = None
    detail: str = ""

    @property
    def serves(self) -> bool:
        """Whether requests may be sent to it."""
        return self.state in {"ready", "busy", "stuck"}
