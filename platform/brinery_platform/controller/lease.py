"""Who leads: a lease in Redis with a fencing token, so that a controller that slept cannot write over its successor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from redis import Redis

from brinery.spec import LEASE_SECONDS
from brinery_platform.routes import ROUTING, EndpointRoute
from brinery_platform.runtimes import detached

LEASE: Final = "controller:lease"
FENCE: Final = "controller:fence"

_RENEW = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""
_PUBLISH_ROUTE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[3] == '' then redis.call('HDEL', KEYS[2], ARGV[2]) else redis.call('HSET', KEYS[2], ARGV[2], ARGV[3]) end
redis.call('PUBLISH', KEYS[2], ARGV[2])
return 1
"""
_ANNOUNCE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return 1
"""


class Lease:
    """The right to act as the controller.

    Args:
        redis: Client of the platform's Redis.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._renew = redis.register_script(_RENEW)
        self._release = redis.register_script(_RELEASE)
        self._publish = redis.register_script(_PUBLISH_ROUTE)
        self._announce = redis.register_script(_ANNOUNCE)
        self._token = ""

    def acquire(self) -> bool:
        """Take the lease if nobody holds it, or if its holder was a process of this machine that is gone.

        Returns:
            Whether this process leads now.
        """
        state = detached.state_of(os.getpid())
        if state is None:
            raise RuntimeError("/proc does not know this process")
        identity = state.identity
        token = f"{self._redis.incr(FENCE)}|{_namespace()}|{identity.boot}|{identity.pid}|{identity.started_ticks}"
        holder = self._redis.get(LEASE)
        if isinstance(holder, bytes) and _is_gone(holder.decode()):
            self._release(keys=[LEASE], args=[holder])
        if not self._redis.set(LEASE, token, nx=True, px=int(LEASE_SECONDS * 1000)):
            return False
        self._token = token
        return True

    def renew(self) -> bool:
        """Extend the lease.

        Returns:
            Whether this process still leads; False means that it must stop acting at once.
        """
        return bool(self._renew(keys=[LEASE], args=[self._token, int(LEASE_SECONDS * 1000)]))

    def release(self) -> None:
        """Give the lease up, so that a successor need not wait for its end."""
        self._release(keys=[LEASE], args=[self._token])

    def publish(self, endpoint_id: str, route: EndpointRoute | None) -> bool:
        """Write an endpoint's row of the routing table (None removes it) and tell every reader.

        Returns:
            Whether it was written; False means that the lease is somebody else's.
        """
        row = b"" if route is None else route.dumps()
        return bool(self._publish(keys=[LEASE, ROUTING], args=[self._token, endpoint_id, row]))

    def announce(self, key: str, value: bytes) -> bool:
        """Write down under `key` where the leader is, for as long as two leases.

        Returns:
            Whether it was written; False means that the lease is somebody else's.
        """
        lasts_ms = int(2 * LEASE_SECONDS * 1000)
        return bool(self._announce(keys=[LEASE, key], args=[self._token, value, lasts_ms]))


def _namespace() -> str:
    """Return which process ids this process sees: those of another container mean other processes."""
    return str(Path("/proc/self/ns/pid").readlink())


def _is_gone(token: str) -> bool:
    """Whether the holder was a process that this machine would still show if it lived."""
    _, namespace, boot, pid, started_ticks = token.split("|")
    if namespace != _namespace() or boot != detached.boot_id():
        return False
    return not detached.is_alive(detached.Identity(pid=int(pid), started_ticks=int(started_ticks), boot=boot))
