"""What is told to the runtime when a worker is started, and to callers when it is ready."""

from __future__ import annotations

from pathlib import Path

from brinery.spec import EndpointSpec, ImageSpec, new_id
from brinery_platform import store
from brinery_platform.controller.builds import Builds
from brinery_platform.routes import WorkerRoute
from brinery_platform.runtimes.base import Running, WorkerSpec


def worker_spec(builds: Builds, version: store.Version, spec: EndpointSpec, environment_id: str) -> WorkerSpec:
    """Return a new worker of a version.

    Args:
        builds: Has its bundle.
        version: Of an endpoint.
        spec: The version's description.
        environment_id: What `Builds.environment` returned for it.

    Raises:
        DeploymentError: The bundle's bytes are not those that its owner uploaded.
    """
    image = builds.image(version.bundle_id)
    bundle, path = (builds.row(version), Path()) if image else builds.bundle(version)
    return WorkerSpec(
        id=new_id("wrk"),
        endpoint_id=version.endpoint_id,
        version=version.number,
        environment_id=environment_id,
        bundle=path,
        sha256=bundle.sha256,
        concurrency=spec.concurrency,
        cpus=spec.cpus,
        memory_mib=spec.memory_mib,
        gpus=spec.gpus,
        drain_seconds=spec.drain_seconds,
        egress=spec.egress if isinstance(spec.egress, str) else tuple(spec.egress),
        env={**store.manifest_of(bundle).env, **spec.env},
        image=image,
        owner=bundle.owner,
    )


def worker_route(running: Running, image: ImageSpec | None) -> WorkerRoute:
    """Return where calls of a worker go.

    Args:
        running: The worker.
        image: What its version runs; None for a bundle.
    """
    if image is None:
        return WorkerRoute(id=running.id, url=running.url, control_url=running.control_url)
    return WorkerRoute(
        id=running.id,
        url=running.url,
        control_url="",
        predict_path=image.predict_route,
        stream_path=image.stream_route,
        on_cancel=image.on_cancel,
    )
