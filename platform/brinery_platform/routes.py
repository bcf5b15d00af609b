"""The routing table: who serves what right now. The controller writes it, gateways and forwarders read it.

It is a Redis hash ``routing`` of endpoint id → JSON, and a channel of the same name that carries the id of the
endpoint that changed. Readers keep it in memory, so that calls go on while Redis is away.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from brinery.spec import EndpointSpec, EndpointStatus, to_json

ROUTING: Final = "routing"
DEMAND: Final = "demand"
WAKE: Final = "wake"
LOAD: Final = "load"
LOAD_MAX_AGE_SECONDS: Final = 5.0
"""Whoever reports does so more often; an older report is of one that was killed."""
GATEWAY_CLIENT: Final = "brinery-gateway"
"""What gateways are called in Redis' list of its clients: who has a connection lives, with nothing to report."""
DESK: Final = "desk"
"""Where the leader tells what runs: JSON of `DeskAddress`, gone a while after the leader."""
DESK_BEAT_SECONDS: Final = 5.0
"""How often the desk gives a sign of life to whoever follows a log."""
DESK_END: Final = "end"
"""The last word of a log that has ended."""


@dataclass(frozen=True)
class DeskAddress:
    """Where the controller's desk is.

    Args:
        url: Base URL, no trailing slash.
        token: Sent as ``Authorization: Bearer``; not in the repr.
    """

    url: str
    token: str = field(repr=False)

    def dumps(self) -> bytes:
        """Return it as JSON."""
        return orjson.dumps({"url": self.url, "token": self.token})

    @classmethod
    def loads(cls, raw: bytes) -> DeskAddress:
        """Read what `dumps` wrote."""
        return cls(**orjson.loads(raw))


@dataclass(frozen=True, kw_only=True)
class WorkerRoute:
    """One worker that may be given requests.

    Args:
        id: ``wrk_…``.
        url: Base URL, no trailing slash.
        control_url: Base URL of its supervisor; ``""`` of an image, which has none.
        predict_path: Where calls go.
        stream_path: Where calls go that want a stream; ``""`` where there is no such place.
        on_cancel: Of an image, see `brinery.spec.ImageSpec`; ``""`` of others, whose supervisor stops single calls.
    """

    id: str
    url: str
    control_url: str
    predict_path: str = "/predict"
    stream_path: str = "/stream"
    on_cancel: str = ""


@dataclass(frozen=True, kw_only=True)
class EndpointRoute:
    """One endpoint as callers see it.

    Args:
        id: ``end_…``.
        owner: Whom it belongs to.
        status: As the API shows it.
        reason: Why, in a sentence; empty when ready.
        version: Number of the version that serves now, 0 when none does yet.
        spec: The serving version's description (the wanted one while none serves).
        workers: Ready workers of the serving version.
        request_schema: JSON Schema of the arguments, for tasks and held requests.
    """

    id: str
    owner: str
    status: EndpointStatus
    reason: str
    version: int
    spec: EndpointSpec
    workers: tuple[WorkerRoute, ...] = ()
    request_schema: dict[str, Any] | None = None

    # What is read again and again on the hot path is made once.
    worker_ids: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "worker_ids", frozenset(worker.id for worker in self.workers))

    def dumps(self) -> bytes:
        """Return the JSON that `loads` reads."""
        data = to_json(self)
        del data["worker_ids"]
        return orjson.dumps(data)

    @classmethod
    def loads(cls, raw: bytes) -> EndpointRoute:
        """Rebuild a route from `dumps`' bytes; they are ours, so they are trusted."""
        data = orjson.loads(raw)
        return cls(
            **{
                **data,
                "status": EndpointStatus(data["status"]),
                "spec": EndpointSpec(**data["spec"]),
                "workers": tuple(WorkerRoute(**worker) for worker in data["workers"]),
            }
        )
