"""The platform's signature under bundles."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from brinery.errors import UnavailableError
from brinery_platform.signing import sign, verify

SHA256 = "ab" * 32


def test_only_the_same_bundle_owner_and_bytes_verify(tmp_path):
    signature = sign(tmp_path, "bun_1", "ann", SHA256)
    assert verify(tmp_path, "bun_1", "ann", SHA256, signature)
    assert not verify(tmp_path, "bun_2", "ann", SHA256, signature)
    assert not verify(tmp_path, "bun_1", "bob", SHA256, signature)
    assert not verify(tmp_path, "bun_1", "ann", "cd" * 32, signature)
    assert not verify(tmp_path, "bun_1", "ann", SHA256, "größe")
    assert not verify(tmp_path / "another", "bun_1", "ann", SHA256, signature)


def test_the_key_is_private_and_made_once_however_many_ask_at_first(tmp_path):
    home = tmp_path / "home"
    with ThreadPoolExecutor(16) as pool:
        signatures = set(pool.map(lambda _: sign(home, "bun_1", "ann", SHA256), range(64)))
    assert len(signatures) == 1
    (key,) = home.iterdir()
    assert key.stat().st_mode & 0o777 == 0o600


def test_a_damaged_key_is_said_and_not_replaced(tmp_path):
    (tmp_path / "signing.key").write_bytes(b"short")
    with pytest.raises(UnavailableError, match=r"signing\.key is damaged"):
        sign(tmp_path, "bun_1", "ann", SHA256)
    assert (tmp_path / "signing.key").read_bytes() == b"short"
