"""The life of endpoints over HTTP: what is wanted is written to SQL, and the controller is woken."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Body
from redis.exceptions import RedisError
from starlette.responses import Response

from brinery.errors import ConflictError, NotFoundError
from brinery.spec import EndpointSpec, EndpointStatus, from_json
from brinery_platform.environments import environment_key, is_fixed
from brinery_platform.gateway.parts import AnyCaller, Gateway, Parts
from brinery_platform.gateway.replies import JsonResponse
from brinery_platform.routes import WAKE
from brinery_platform.store import Endpoint, Version, manifest_of, spec_of
from brinery_platform.usage import NOT_KNOWN

JsonObject = Annotated[dict[str, Any], Body()]

router = APIRouter(tags=["endpoints"])
logger = structlog.get_logger(__name__)


@router.put("/v1/endpoints/{name}", responses={201: {"description": "Created"}})
def put_endpoint(name: str, described: JsonObject, caller: AnyCaller, gateway: Parts) -> Response:
    """Create an endpoint, or give it a new version: the whole description, ``bundle_id`` at least."""
    if described.get("name", name) != name:
        raise ConflictError(f"The body names {described['name']!r}, the URL {name!r}; leave it out of the body.")
    spec = from_json(EndpointSpec, {**described, "name": name}, what="endpoint")
    manifest = manifest_of(gateway.services.store.bundle(spec.bundle_id, owner=caller.owner))
    endpoint, version = gateway.services.store.put_endpoint(
        caller.owner,
        spec,
        environment_key=environment_key(manifest),
        again=manifest.image is not None and not is_fixed(manifest.image),  # a tag may mean another image by now
    )
    _wake_controller(gateway, endpoint.id)
    created = version.number == 1
    return JsonResponse(_described(endpoint, version, gateway), status_code=201 if created else 200)


@router.get("/v1/endpoints")
def list_endpoints(caller: AnyCaller, gateway: Parts) -> Response:
    """List the owner's endpoints by name; the image of one is shown where it is asked for alone."""
    store = gateway.services.store
    shown = []
    for endpoint in store.endpoints(caller.owner):
        try:
            shown.append(_shown(endpoint, store.version(endpoint.id, endpoint.wanted_version), gateway))
        except NotFoundError:
            continue  # deleted since the line above
    return JsonResponse({"endpoints": shown})


@router.get("/v1/endpoints/{name}")
def get_endpoint(name: str, caller: AnyCaller, gateway: Parts) -> Response:
    """Return one endpoint."""
    endpoint, version = _wanted(name, caller.owner, gateway)
    return JsonResponse(_described(endpoint, version, gateway))


@router.delete("/v1/endpoints/{name}", status_code=202)
def delete_endpoint(name: str, caller: AnyCaller, gateway: Parts) -> Response:
    """Delete an endpoint: its workers drain, its tasks are cancelled, then it is gone."""
    endpoint, _ = _wanted(name, caller.owner, gateway)
    if endpoint.status != EndpointStatus.DELETING:
        gateway.services.store.delete_endpoint(endpoint.id)
    _wake_controller(gateway, endpoint.id)
    endpoint, version = _wanted(name, caller.owner, gateway)
    return JsonResponse(_described(endpoint, version, gateway), status_code=202)


@router.get("/v1/endpoints/{name}/versions")
def list_versions(name: str, caller: AnyCaller, gateway: Parts) -> Response:
    """List an endpoint's versions, newest first."""
    endpoint = gateway.services.store.endpoint(caller.owner, name)
    versions = [
        {
            "number": version.number,
            "status": version.status,
            "reason": version.reason,
            "created_at": version.created_at,
            "spec": spec_of(version).shown(),
        }
        for version in gateway.services.store.versions(endpoint.id)
    ]
    return JsonResponse({"versions": versions})


@router.post("/v1/endpoints/{name}/rollback")
def roll_back(
    name: str, version: Annotated[int, Body(embed=True, ge=1)], caller: AnyCaller, gateway: Parts
) -> Response:
    """Serve an earlier version's description again, as a new version."""
    store = gateway.services.store
    endpoint = store.endpoint(caller.owner, name)
    return _deploy_again(store.version(endpoint.id, version), caller.owner, gateway, again=False)


@router.post("/v1/endpoints/{name}/restart", status_code=202)
def restart(name: str, caller: AnyCaller, gateway: Parts) -> Response:
    """Replace every worker without dropping a request: the same description as a new version."""
    _, version = _wanted(name, caller.owner, gateway)
    response = _deploy_again(version, caller.owner, gateway, again=True)
    response.status_code = 202
    return response


def _deploy_again(old: Version, owner: str, gateway: Gateway, *, again: bool) -> Response:
    endpoint, version = gateway.services.store.put_endpoint(
        owner, spec_of(old), environment_key=old.environment_key, again=again
    )
    _wake_controller(gateway, endpoint.id)
    return JsonResponse(_described(endpoint, version, gateway))


def _wanted(name: str, owner: str, gateway: Gateway) -> tuple[Endpoint, Version]:
    endpoint = gateway.services.store.endpoint(owner, name)
    return endpoint, gateway.services.store.version(endpoint.id, endpoint.wanted_version)


def _wake_controller(gateway: Gateway, endpoint_id: str) -> None:
    """Let the controller look at once; while Redis is away, it finds the change at its next tick."""
    try:
        gateway.services.redis.publish(WAKE, endpoint_id)
    except RedisError as error:
        logger.info("controller_not_woken", endpoint_id=endpoint_id, error=str(error))


def _described(endpoint: Endpoint, version: Version, gateway: Gateway) -> dict[str, Any]:
    """Return what is shown of an endpoint alone: its image, too, and what the image's name meant at the deployment."""
    store = gateway.services.store
    image = manifest_of(store.bundle(version.bundle_id)).image
    shown = None
    if image is not None:
        environment = store.environment(version.environment_key)
        shown = {**asdict(image), "resolved": environment.lock if environment else None}
    return {**_shown(endpoint, version, gateway), "image": shown}


def _shown(endpoint: Endpoint, version: Version, gateway: Gateway) -> dict[str, Any]:
    lane = gateway.table.by_id(endpoint.id)
    workers = [] if lane is None else list(lane.workers.values())
    used = gateway.services.watch.look(endpoint.id, [worker.id for worker in workers])
    return {
        "id": endpoint.id,
        "name": endpoint.name,
        "owner": endpoint.owner,
        "status": endpoint.status,
        "reason": endpoint.reason,
        "wanted_version": endpoint.wanted_version,
        "serving_version": endpoint.serving_version,
        "spec": spec_of(version).shown(),
        "workers": [
            {"id": worker.id, "in_flight": worker.in_flight, **used.get(worker.id, NOT_KNOWN)} for worker in workers
        ],
        "created_at": endpoint.created_at,
        "updated_at": endpoint.updated_at,
    }
