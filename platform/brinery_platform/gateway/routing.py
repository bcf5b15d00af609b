"""The routing table in memory: found by owner and name without any I/O, and kept when Redis goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, cast

import structlog
from redis.asyncio import Redis

from brinery.errors import BrineryError, ConflictError, DeploymentError, NotFoundError
from brinery.spec import EndpointStatus
from brinery_platform.gateway.lanes import Lane
from brinery_platform.gateway.signals import Listener
from brinery_platform.routes import ROUTING, EndpointRoute
from brinery_platform.store import Store, manifest_of, spec_of

REFRESH_SECONDS: Final = 10.0
"""How often the table is read although nothing was said: the controller may die between writing and speaking."""

logger = structlog.get_logger(__name__)


class RoutingTable:
    """Every endpoint's `Lane`, by id and by owner and name.

    Args:
        store: Asked once for an endpoint that the controller has not written to the table yet.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._by_id: dict[str, Lane] = {}
        self._by_name: dict[tuple[str, str], Lane] = {}
        self._raw: dict[str, bytes] = {}
        self.loaded = False

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._by_id.values())

    def find(self, owner: str, name: str) -> Lane | None:
        """Return the lane of the owner's endpoint of that name, if the table has it."""
        return self._by_name.get((owner, name))

    def by_id(self, endpoint_id: str) -> Lane | None:
        """Return the lane of an endpoint, if the table has it."""
        return self._by_id.get(endpoint_id)

    async def resolve(self, owner: str, name: str) -> Lane:
        """Return the lane of an endpoint, also of one deployed a moment ago.

        Raises:
            NotFoundError: The owner has no endpoint of that name.
        """
        lane = self.find(owner, name)
        if lane is not None:
            return lane
        route = await asyncio.to_thread(self._from_store, owner, name)
        if route.status == EndpointStatus.DELETING:
            raise NotFoundError(f"Endpoint {name!r} was deleted.", endpoint=name)
        return self.find(owner, name) or self._by_id.get(route.id) or self._add(route, listed=False)

    def _from_store(self, owner: str, name: str) -> EndpointRoute:
        endpoint = self._store.endpoint(owner, name)
        version = self._store.version(endpoint.id, endpoint.wanted_version)
        return EndpointRoute(
            id=endpoint.id,
            owner=owner,
            status=EndpointStatus(endpoint.status),
            reason=endpoint.reason,
            version=0,
            spec=spec_of(version),
            request_schema=manifest_of(self._store.bundle(version.bundle_id)).request_schema,
        )

    def load(self, table: dict[str, bytes]) -> None:
        """Take over the whole table as Redis has it; what is not in it any more is gone."""
        for endpoint_id, raw in table.items():
            self.apply(endpoint_id, raw)
        for endpoint_id in [key for key, lane in self._by_id.items() if key not in table]:
            lane = self._by_id[endpoint_id]
            if lane.listed or not lane.waiting:
                self.apply(endpoint_id, None)
        self.loaded = True

    def apply(self, endpoint_id: str, raw: bytes | None) -> None:
        """Take over one endpoint as Redis has it; None if it is gone."""
        if raw is None:
            self._remove(endpoint_id)
            return
        if self._raw.get(endpoint_id) == raw:
            return
        try:
            route = EndpointRoute.loads(raw)
        except (ValueError, TypeError, KeyError) as error:
            logger.warning("route_unreadable", endpoint_id=endpoint_id, error=str(error), cure="upgrade this gateway")
            return
        lane = self._by_id.get(endpoint_id)
        if lane is None:
            lane = self._add(route)
        else:
            lane.listed = True
            lane.update(route)
        self._raw[endpoint_id] = raw
        if (hopeless := why_hopeless(route)) is not None:
            lane.fail(hopeless)

    def _add(self, route: EndpointRoute, *, listed: bool = True) -> Lane:
        lane = Lane(route, listed=listed)
        self._by_id[route.id] = lane
        self._by_name[route.owner, route.spec.name] = lane
        return lane

    def _remove(self, endpoint_id: str) -> None:
        self._raw.pop(endpoint_id, None)
        lane = self._by_id.pop(endpoint_id, None)
        if lane is None:
            return
        name = (lane.route.owner, lane.route.spec.name)
        if self._by_name.get(name) is lane:  # a successor of the same name stays
            del self._by_name[name]
        lane.fail(lambda: NotFoundError(f"Endpoint {name[1]!r} was deleted.", endpoint=name[1]), closed=True)


def why_hopeless(route: EndpointRoute) -> Callable[[], BrineryError] | None:
    """Return what makes the error for a request that waits in vain, or None where waiting makes sense."""
    name = route.spec.name
    if route.workers:
        return None
    if route.status == EndpointStatus.FAILED:
        return lambda: DeploymentError(f"Endpoint {name!r} has failed: {route.reason}", endpoint=name)
    if route.status == EndpointStatus.DELETING:
        return lambda: ConflictError(f"Endpoint {name!r} is being deleted; deploy it again.", endpoint=name)
    return None


async def follow_routing(redis: Redis, table: RoutingTable) -> None:
    """Keep `table` as Redis has it, for ever; while Redis is away, the table stays as it is.

    Args:
        redis: A client whose replies are bytes.
        table: What to keep.
    """

    async def refresh() -> None:
        everything = await cast("Awaitable[dict[bytes, bytes]]", redis.hgetall(ROUTING))
        table.load({key.decode(): raw for key, raw in everything.items()})

    async def changed(endpoint_id: str) -> None:
        table.apply(endpoint_id, await cast("Awaitable[bytes | None]", redis.hget(ROUTING, endpoint_id)))

    listener = Listener(redis=redis, channel=ROUTING, refresh=refresh, said=changed, every_seconds=REFRESH_SECONDS)
    await listener.run()
