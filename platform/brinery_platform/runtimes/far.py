"""What runs, as the controller's desk tells it to a process that has no engine: gateways and forwarders.

A desk that is away is nothing that fails a task or a call: a log is then a note that says so, and a follower waits for
the next leader's desk and goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

import orjson
import urllib3
from redis import Redis
from redis.exceptions import RedisError

from brinery.errors import UnavailableError
from brinery_platform.routes import DESK, DESK_BEAT_SECONDS, DESK_END, DeskAddress
from brinery_platform.runtimes.base import LogMark, Running

CONNECT_SECONDS: Final = 1.0
READ_SECONDS: Final = 10.0
SILENT_SECONDS: Final = 4 * DESK_BEAT_SECONDS
"""A desk that followers hear nothing of for so long is gone."""
AGAIN_SECONDS: Final = 0.5
PATIENT_SECONDS: Final = 3.0
"""A controller that is back within this time was not worth a note."""
NOTE_SECONDS: Final = 30.0
"""How often a follower is told that the desk is away."""
OVERLAP_SECONDS: Final = 0.001
"""A follower asks again for the time of its last line, and leaves out what it has: times lose digits on their way."""
ALL: Final = -1
AWAY: Final = "(the controller does not answer, so what was said meanwhile comes later)"
NO_LOG: Final = "(the log cannot be read: the controller does not answer)"

_Entry = Any
"""A time and a line, None as a sign of life, or `DESK_END`."""


class FarRuntime:
    """The looking half of a runtime, `base.Visible`, through the desk of whoever leads.

    Args:
        redis: Tells where the desk is.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._pool = urllib3.PoolManager(num_pools=2, maxsize=4, retries=False)

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def list(self) -> list[Running]:
        """Return everything of ours that runs.

        Raises:
            UnavailableError: The desk does not answer.
        """
        reply = self._ask("/v1/running", {}, read_seconds=READ_SECONDS)
        try:
            return [Running(**fields) for fields in orjson.loads(reply.data)]
        except (urllib3.exceptions.HTTPError, ValueError, TypeError) as error:
            raise UnavailableError(f"The controller's desk gave no answer: {error}") from error

    def logs(
        self, running_id: str, *, tail: int = 200, follow: bool = False, since: LogMark | None = None
    ) -> Iterator[str]:
        """See `Runtime.logs`; where the desk is away, a line says so."""
        if follow:
            yield from self._followed(running_id, tail, since)
            return
        try:
            for entry in self._entries(running_id, tail, follow=False, since=since):
                if entry is not None and entry != DESK_END:
                    yield entry[1]
        except UnavailableError:
            yield NO_LOG

    def _followed(self, running_id: str, tail: int, since: LogMark | None) -> Iterator[str]:
        last = 0.0 if tail else time.time()  # without a past, what comes after this moment is wanted
        away_at = noted_at = 0.0
        resumed = False
        while True:
            try:
                for entry in self._entries(running_id, tail, follow=True, since=since):
                    away_at = 0.0
                    if entry == DESK_END:
                        return
                    if entry is not None and not (resumed and entry[0] <= last):
                        last = max(last, entry[0])
                        yield entry[1]
            except UnavailableError:
                now = time.monotonic()
                away_at = away_at or now
                if now - away_at > PATIENT_SECONDS and now - noted_at > NOTE_SECONDS:
                    noted_at = now
                    yield AWAY
            if last:
                resumed, tail, since = True, ALL, LogMark(last - OVERLAP_SECONDS, 0)
            time.sleep(AGAIN_SECONDS)

    def _entries(self, running_id: str, tail: int, *, follow: bool, since: LogMark | None) -> Iterator[_Entry]:
        """Yield what the desk says; it ends without `DESK_END` when the desk has gone."""
        query: dict[str, Any] = {"tail": tail, "follow": int(follow)}
        if since is not None:
            query |= {"at": repr(since.at), "size": since.size}
        read_seconds = SILENT_SECONDS if follow else READ_SECONDS
        reply = self._ask(f"/v1/logs/{running_id}", query, read_seconds=read_seconds)
        rest = b""
        try:
            for piece in reply.stream():
                *lines, rest = (rest + piece).split(b"\n")
                yield from map(orjson.loads, lines)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise UnavailableError(f"The controller's desk has gone: {error}") from error
        finally:
            reply.close()

    def _ask(self, path: str, query: dict[str, Any], *, read_seconds: float) -> urllib3.BaseHTTPResponse:
        try:
            raw = self._redis.get(DESK)
        except RedisError as error:
            raise UnavailableError(f"Redis does not answer: {error}") from error
        if not isinstance(raw, bytes):
            raise UnavailableError("No controller leads.")
        desk = DeskAddress.loads(raw)
        try:
            reply = self._pool.request(
                "GET",
                f"{desk.url}{path}",
                fields=query,
                headers={"Authorization": f"Bearer {desk.token}"},
                timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=read_seconds),
                preload_content=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise UnavailableError(f"The controller's desk does not answer: {error}") from error
        if reply.status != 200:
            said = reply.data[:500].decode(errors="replace")
            reply.close()
            raise UnavailableError(f"The controller's desk refused ({reply.status}): {said}")
        return reply
