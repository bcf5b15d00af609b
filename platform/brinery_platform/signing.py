"""What the platform's key signs: who uploaded which bundle, each owner's webhooks, what a worker may connect to.

The key itself never leaves.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

from brinery.errors import UnavailableError

KEY_BYTES: Final = 32
_FILE: Final = "signing.key"


def sign(home: Path, bundle_id: str, owner: str, sha256: str) -> str:
    """Return the signature of a bundle, hex.

    Args:
        home: The platform's home; its key is made there when it is first needed.
        bundle_id: ``bun_…``.
        owner: Who uploaded it.
        sha256: Digest of its bytes, hex.

    Raises:
        UnavailableError: The key's file is damaged.
    """
    message = "|".join((bundle_id, owner, sha256)).encode()
    return hmac.digest(_key(home), message, hashlib.sha256).hex()


def verify(home: Path, bundle_id: str, owner: str, sha256: str, signature: str) -> bool:
    """Return whether `signature` is what `sign` gives for the same bundle.

    Raises:
        UnavailableError: The key's file is damaged.
    """
    return hmac.compare_digest(sign(home, bundle_id, owner, sha256).encode(), signature.encode())


def webhook_secret(home: Path, owner: str) -> bytes:
    """Return the secret that an owner's webhooks are signed with: 32 bytes, always the same for this key and owner.

    Raises:
        UnavailableError: The key's file is damaged.
    """
    return hmac.digest(_key(home), f"webhooks|{owner}".encode(), hashlib.sha256)


def egress_token(home: Path, permit: str) -> str:
    """Return what proves to the egress proxy that a permit is the platform's, hex.

    Raises:
        UnavailableError: The key's file is damaged.
    """
    return hmac.digest(_key(home), f"egress|{permit}".encode(), hashlib.sha256).hex()


def _key(home: Path) -> bytes:
    path = home / _FILE
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        key = _make_key(path)
    if len(key) != KEY_BYTES:
        raise UnavailableError(
            f"{path} is damaged: restore it from a backup, or remove it and deploy every bundle again."
        )
    return key


def _make_key(path: Path) -> bytes:
    """Make the key in one step; of several processes that try at once, the first one's is everybody's."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(f"{_FILE}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            path.hardlink_to(part)  # unlike a rename, it never replaces
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        part.unlink(missing_ok=True)
    return path.read_bytes()
