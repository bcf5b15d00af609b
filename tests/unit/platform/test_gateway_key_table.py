"""The gateway's keys: before they have been read, nobody is told that a good key is no key."""

from types import SimpleNamespace

import pytest

from brinery.errors import AuthenticationError, UnavailableError
from brinery_platform.gateway.auth import KeyTable, hash_key


class OneKey:
    """A store with one key in it."""

    def live_keys(self):
        return [SimpleNamespace(sha256=hash_key("brn_good"), id="key_1", owner="me", admin=False)]


def test_a_gateway_that_has_not_read_its_keys_is_not_ready_yet():
    keys = KeyTable(OneKey())
    with pytest.raises(UnavailableError, match="just started"):
        keys.authenticate(b"Bearer brn_good")
    keys.refresh()
    assert keys.authenticate(b"Bearer brn_good").owner == "me"
    for wrong in (b"Bearer brn_wrong", b""):
        with pytest.raises(AuthenticationError):
            keys.authenticate(wrong)
