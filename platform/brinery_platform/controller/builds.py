"""What a version needs on this machine before a worker can start: its environment, and its bundle's bytes, verified."""

from __future__ import annotations

import hashlib
import tempfile
import time
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from brinery.errors import DeploymentError
from brinery.spec import ImageSpec, new_id
from brinery_platform import store
from brinery_platform.build_orders import build_key, request_build
from brinery_platform.runtimes.base import PlatformSpec, Running
from brinery_platform.services import Services
from brinery_platform.signing import verify

STALE_BUILD_SECONDS: Final = 15.0
"""A build whose builder has been silent for so long is asked for again."""


class Builds:
    """Environments and bundles, as the controller needs them.

    Args:
        services: The platform's parts.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._builder: Running | None = None
        self._requested_at: dict[str, float] = {}

    def adopt(self, running: Running) -> None:
        """Take over the builder that an earlier controller started."""
        self._builder = running

    def environment(self, version: store.Version) -> str | None:
        """Return the version's environment, or None while it is being built; ask for the build where needed.

        Raises:
            DeploymentError: The build failed, with the installer's words.
        """
        known = self._services.store.environment(version.environment_key)
        if known is not None and self._services.environments.is_ready(known.environment_id):
            return known.environment_id
        return self._build(version, known.lock if known else None)

    def _build(self, version: store.Version, lock: str | None) -> str | None:
        redis, key = self._services.redis, version.environment_key
        state: dict[bytes, bytes] = redis.hgetall(build_key(key))  # type: ignore[assignment]  # the sync client
        status = state.get(b"status", b"").decode()
        asked = key in self._requested_at
        if status == "failed" and asked:
            redis.delete(build_key(key))
            del self._requested_at[key]
            raise DeploymentError(state.get(b"error", b"").decode() or "The environment could not be built.")
        if status == "ready":
            environment_id = state[b"environment_id"].decode()
            if self._services.environments.is_ready(environment_id):
                self._services.store.put_environment(key, environment_id, state[b"lock"].decode())
                self._requested_at.pop(key, None)
                return environment_id
        alive_at = max(float(state.get(b"alive_at", b"0")), self._requested_at.get(key, 0.0))
        if not asked or time.time() - alive_at > STALE_BUILD_SECONDS:
            self._requested_at[key] = time.time()
            bundle = self._services.store.bundle(version.bundle_id)
            request_build(
                self._services.celery,
                self._services.redis,
                key=key,
                manifest=store.manifest_of(bundle),
                lock=lock,
                endpoint_id=version.endpoint_id,
                version=version.number,
            )
        self._keep_builder()
        return None

    def _keep_builder(self) -> None:
        """Have one builder while something is to be built; it ends by itself when it is idle."""
        runtime = self._services.runtime
        if self._builder is not None and runtime.poll(self._builder.id) is None:
            return
        if self._builder is not None:
            runtime.stop(self._builder.id, grace_seconds=0.0)
        self._builder = runtime.start(PlatformSpec(id=new_id("fwd"), kind="builder", module="brinery_platform.builder"))

    def bundle(self, version: store.Version) -> tuple[store.Bundle, Path]:
        """Return the version's bundle and its file on this machine, fetched and verified once.

        Raises:
            DeploymentError: Its bytes are not those that its owner uploaded.
        """
        row = self.row(version)
        folder = self._services.settings.home / "bundles"
        path = folder / f"{row.sha256}.zip"
        if not path.exists():
            if not verify(self._services.settings.home, row.id, row.owner, row.sha256, row.signature):
                raise DeploymentError(f"The signature of bundle {row.id} is not this platform's; upload it again.")
            data = self._services.objects.get(f"bundles/{row.sha256}")
            if hashlib.sha256(data).hexdigest() != row.sha256:
                raise DeploymentError(f"The stored bytes of bundle {row.id} are damaged; upload it again.")
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
                file.write(data)
            Path(file.name).chmod(0o444)
            Path(file.name).replace(path)
        return row, path

    def row(self, version: store.Version) -> store.Bundle:
        """Return the description of a version's bundle."""
        return self._services.store.bundle(version.bundle_id)

    @lru_cache(maxsize=1024)  # noqa: B019 - the controller lives as long as its process
    def image(self, bundle_id: str) -> ImageSpec | None:
        """Return how a bundle's image is run, None where it has code instead; bundles never change."""
        return store.manifest_of(self._services.store.bundle(bundle_id)).image

    @lru_cache(maxsize=1024)  # noqa: B019 - the controller lives as long as its process
    def request_schema(self, bundle_id: str) -> dict[str, Any] | None:
        """Return the JSON Schema of a bundle's arguments; bundles never change."""
        return store.manifest_of(self._services.store.bundle(bundle_id)).request_schema
