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


@dataclass(frozen=True, kw_only=True)
class WorkerRoute:
    """One worker that may be given requests.

    Args:
        id: ``wrk_…``.
        url: Base URL, no trailing slash.
        control_url: Base URL of its supervisor.
    """

    id: str
    url: str
    control_url: str


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
