"""API keys over HTTP, for administrators."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, StringConstraints
from starlette.responses import Response

from brinery.checks import check_name
from brinery.errors import ConflictError
from brinery_platform.gateway.parts import AdminCaller, Parts
from brinery_platform.gateway.replies import JsonResponse
from brinery_platform.store import Key

router = APIRouter(tags=["keys"])


class NewKey(BaseModel):
    """Body of ``POST /v1/keys``."""

    model_config = ConfigDict(extra="forbid")

    owner: Annotated[str, StringConstraints(min_length=1, max_length=63)]
    name: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    admin: bool = False


@router.post("/v1/keys", status_code=201)
def create_key(wanted: NewKey, caller: AdminCaller, gateway: Parts) -> Response:  # noqa: ARG001 - authorizes
    """Make a key; its text is in this reply and nowhere else."""
    check_name(wanted.owner, "owner")
    store, settings = gateway.services.store, gateway.services.settings
    others = {key.owner for key in store.live_keys()} - {wanted.owner}
    if others and settings.runtime != "docker" and not settings.trust_all_owners:
        raise ConflictError(
            "Workers run as plain processes here, which do not isolate owners from each other: code of one could read "
            "the other's data. Make the key for the present owner, run workers as containers with "
            "BRINERY_RUNTIME=docker, or start the platform with BRINERY_TRUST_ALL_OWNERS=true if all owners trust each "
            "other."
        )
    key, text = store.create_key(wanted.owner, wanted.name, admin=wanted.admin)
    gateway.keys.refresh()
    return JsonResponse({**_shown(key), "key": text}, status_code=201)


@router.get("/v1/keys")
def list_keys(caller: AdminCaller, gateway: Parts) -> Response:  # noqa: ARG001 - authorizes
    """List the live keys of all owners."""
    return JsonResponse({"keys": [_shown(key) for key in gateway.services.store.live_keys()]})


@router.delete("/v1/keys/{key_id}", status_code=204)
def revoke_key(key_id: str, caller: AdminCaller, gateway: Parts) -> Response:  # noqa: ARG001 - authorizes
    """Revoke a key: dead at once here, and within a second on every other gateway."""
    store = gateway.services.store
    if {key.id for key in store.live_keys() if key.admin} == {key_id}:
        raise ConflictError("This is the last administrator's key; make another one first.", key_id=key_id)
    store.revoke_key(key_id)
    gateway.keys.refresh()
    return Response(status_code=204)


def _shown(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "owner": key.owner,
        "name": key.name,
        "admin": key.admin,
        "created_at": key.created_at,
    }
