"""From an `Endpoint` here to a ready one there: check, pack, upload, ask for it, and watch until it stands."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import cloudpickle
from tenacity import Retrying

from brinery.bundle import PYTHON_MINOR, PackedBundle, pack
from brinery.errors import DeploymentError, PackingError, UnavailableError, error_from_json
from brinery.routes import endpoint_path
from brinery.spec import EndpointSpec, EndpointStatus, to_json
from brinery.transport import retry_arguments

if TYPE_CHECKING:
    from brinery.client import Client
    from brinery.definition import Definition

Progress = Callable[[dict[str, Any]], None]
"""Called with an event: ``at`` (seconds since the epoch), ``version``, ``kind`` and ``text``."""
WATCH_PATIENCE_SECONDS: Final = 600.0
"""How long the gateway may be away, without a break, before a deployment is no longer watched."""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """How an endpoint stands after `Endpoint.deploy`.

    Args:
        name: The endpoint's name.
        version: Number of the version that was deployed.
        status: ``ready``, or where it was when nobody waited.
        url: Where plain HTTP calls go: ``POST`` a JSON object of arguments.
        bundle_id: ``bun_…``.
    """

    name: str
    version: int
    status: EndpointStatus
    url: str
    bundle_id: str


def deploy(endpoint: Definition, client: Client, *, wait: bool, progress: Progress | None) -> Deployment:
    """Deploy an endpoint; see `Endpoint.deploy`."""
    endpoint.spec("bun_unknown")  # a wrong setting is told before anything is packed
    check_platform(client.info())
    return deploy_packed(endpoint.spec, pack(endpoint), client, wait=wait, progress=progress)


def deploy_packed(
    described: Callable[[str], EndpointSpec],
    packed: PackedBundle,
    client: Client,
    *,
    wait: bool,
    progress: Progress | None,
) -> Deployment:
    """Upload a bundle and make it an endpoint's new version.

    Args:
        described: Returns the endpoint's description for the bundle's id.
        packed: The bundle.
        client: The gateway.
        wait: See `Endpoint.deploy`.
        progress: See `Endpoint.deploy`.

    Raises:
        DeploymentError: It cannot become ready; carries the reason.
        BrineryError: Another of its classes says what else went wrong.
    """
    report = progress or _ignore
    report(_event(f"Packed {_size(packed)}; uploading."))
    bundle_id = str(client.upload_bundle(packed.data)["id"])
    settings = to_json(described(bundle_id))
    name = settings.pop("name")
    accepted = client.put_endpoint(name, settings)
    version, status = int(accepted["wanted_version"]), EndpointStatus(accepted["status"])
    if version == accepted["serving_version"]:
        report(_event(f"Unchanged; version {version} already serves."))
    elif wait:
        watch(client, name, version, report)
        status = EndpointStatus.READY
    url = f"{client.url}{endpoint_path(name, 'predict')}"
    return Deployment(name=name, version=version, status=status, url=url, bundle_id=bundle_id)


def check_platform(info: dict[str, Any]) -> None:
    """Refuse what the platform's workers could not open.

    Args:
        info: Answer of ``GET /v1/info``.

    Raises:
        PackingError: With the cure in its text.
    """
    offered = [str(minor) for minor in info["python"]]
    if PYTHON_MINOR not in offered:
        wanted = offered[-1] if offered else "another one"
        raise PackingError(
            f"This is Python {PYTHON_MINOR}, and the platform's workers have {', '.join(offered)}: a pickle opens only "
            f"in the Python that made it. Run this with Python {wanted}, as in `uv run --python {wanted} …`.",
            python=PYTHON_MINOR,
        )
    theirs = str(info["cloudpickle"])
    if _major(cloudpickle.__version__) > _major(theirs):
        raise PackingError(
            f"cloudpickle {cloudpickle.__version__} is here, and {theirs} in the platform's workers, which cannot open "
            f"what a newer one packs. Run `{sys.executable} -m pip install 'cloudpickle=={theirs}'`.",
            cloudpickle=cloudpickle.__version__,
        )


def watch(client: Client, name: str, version: int, report: Progress) -> None:
    """Report a version's events until it is ready; a gateway that restarts meanwhile does no harm.

    Raises:
        DeploymentError: It cannot become ready; carries the reason.
        UnavailableError: The gateway has been away for ten minutes.
    """
    seen = set[tuple[Any, ...]]()
    while True:
        last_seen = len(seen)
        for attempt in Retrying(**retry_arguments(WATCH_PATIENCE_SECONDS)):
            with attempt:
                if _follow(client, name, version, report, seen):
                    return
                if len(seen) == last_seen:
                    raise UnavailableError(f"The gateway ended the events of {name!r} before it was ready.")


def _follow(client: Client, name: str, version: int, report: Progress, seen: set[tuple[Any, ...]]) -> bool:
    """Follow one connection's events, those seen before left out; return whether the version is ready."""
    for kind, event in client.events(name, version=version):
        if kind == "done":
            if event["status"] == EndpointStatus.READY:
                return True
            raise DeploymentError(
                f"{name!r} version {version} cannot become ready: {event.get('reason') or 'no reason was given'}",
                endpoint=name,
                version=version,
            )
        if kind == "error":
            raise error_from_json(event)
        identity = (event.get("at"), event.get("kind"), event.get("text"))
        if identity not in seen:
            seen.add(identity)
            report(event)
    return False


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _size(packed: PackedBundle) -> str:
    return f"{packed.manifest.name} ({len(packed.data) / 1024:.0f} KiB, sha256 {packed.sha256[:12]}…)"


def _event(text: str) -> dict[str, Any]:
    return {"at": time.time(), "version": 0, "kind": "status", "text": text}


def _ignore(_event: dict[str, Any]) -> None:
    return None
