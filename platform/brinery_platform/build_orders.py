"""How a build is ordered: one message on the queue `builds`, and the hash that will say how it goes."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import redis

from brinery.spec import BundleManifest, to_json
from brinery_platform.broker import BUILD, BUILDS, publish

if TYPE_CHECKING:
    from celery import Celery


def build_key(key: str) -> str:
    """Return the Redis key of a build's hash.

    Args:
        key: See `environments.environment_key`.
    """
    return f"build:{key}"


def request_build(
    app: Celery,
    client: redis.Redis,
    *,
    key: str,
    manifest: BundleManifest,
    lock: str | None,
    endpoint_id: str,
    version: int,
) -> None:
    """Order a build; a builder that runs takes it, and the outcome of an earlier one is forgotten.

    Args:
        app: Celery's application.
        client: The platform's Redis.
        key: See `environments.environment_key`.
        manifest: What is to be built.
        lock: Exact versions of an earlier build, or None to resolve the requirements.
        endpoint_id: Whose log shows the output.
        version: Of that endpoint.

    Raises:
        UnavailableError: The broker did not take it.
    """
    with client.pipeline() as pipeline:
        pipeline.hset(build_key(key), "status", "building")
        pipeline.hdel(build_key(key), "environment_id", "lock", "error")
        pipeline.execute()
    order = {
        "key": key,
        "manifest": to_json(manifest),
        "lock": lock,
        "endpoint_id": endpoint_id,
        "version": version,
    }
    publish(app, queue=BUILDS, task_name=BUILD, task_id=f"{key}-{secrets.token_hex(4)}", kwargs=order)
