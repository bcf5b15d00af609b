"""The platform's own processes as containers: forwarders and the proxy of egress, in the platform's image.

They are in the network of the machine, as the gateway is, so that they reach workers and services where processes
would. They have no Docker socket, no capability, no file of this machine but what `_binds` says, and nothing to write
to but a small tmpfs. Their settings come by stdin, see `handover`.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from brinery.errors import DeploymentError
from brinery_platform.runtimes.base import PlatformSpec, Running
from brinery_platform.runtimes.docker import handover, labels, sandbox
from brinery_platform.runtimes.docker.engine import Engine, Facts
from brinery_platform.signing import egress_token

if TYPE_CHECKING:
    from brinery_platform.settings import Settings

KINDS: Final = frozenset({"forwarder", "egress"})
"""What runs in containers; builders hold the Docker socket and are processes of the controller."""
NEEDED: Final = {
    "forwarder": re.compile(r"BRINERY_.*|AWS_.*|(HTTPS?|ALL|NO)_PROXY|LANG|LC_ALL|TZ", re.IGNORECASE),
    "egress": re.compile(r"BRINERY_.*|LANG|LC_ALL|TZ"),
}
"""Names of the variables that travel."""
WITHHELD: Final = {
    "forwarder": frozenset({"BRINERY_DATABASE_URL", "BRINERY_ADMIN_KEY"}),
    "egress": frozenset({"BRINERY_DATABASE_URL", "BRINERY_ADMIN_KEY", "BRINERY_REDIS_URL", "BRINERY_OBJECTS_URL"}),
}
"""Secrets among them that this kind has no use for."""
SCRATCH_MIB: Final = 64
ROOTS: Final = frozenset({"", "0", "root"})
MOUNTS: Final = Path("/proc/self/mountinfo")


class PlatformContainers:
    """Describes and starts the platform's own containers.

    Args:
        engine: Where they are.
        settings: This platform's.
        environment: Variables of the platform's own processes; of them, containers get what they need.
    """

    def __init__(self, engine: Engine, settings: Settings, environment: Mapping[str, str]) -> None:
        self._engine = engine
        self._settings = settings
        self._environment = dict(environment)

    def config(self, spec: PlatformSpec, whose: Mapping[str, str]) -> Facts:
        """Return the body of the call that creates a container.

        Args:
            spec: What is to run.
            whose: See `labels.HOME`.

        Raises:
            DeploymentError: The image is not there, runs as root, or cannot reach what the settings name.
        """
        self._check(spec)
        running = Running(id=spec.id, kind=spec.kind, endpoint_id=spec.endpoint_id, started_at=time.time())
        return {
            "Image": self._settings.platform_image,
            "Entrypoint": ["python3", "-m", handover.__name__],
            "Cmd": [spec.module, *spec.arguments],
            "Env": ["HOME=/tmp", "TMPDIR=/tmp", "PYTHONUNBUFFERED=1", "PYTHONDONTWRITEBYTECODE=1"],
            "WorkingDir": "/tmp",  # noqa: S108 - the container's own
            "Labels": {
                **whose,
                labels.KIND: "platform",
                labels.ID: spec.id,
                labels.RUNNING: json.dumps(dataclasses.asdict(running)),
            },
            "OpenStdin": True,
            "StdinOnce": True,
            "AttachStdin": True,
            "HostConfig": {
                "NetworkMode": "host",
                "CapDrop": ["ALL"],
                "SecurityOpt": ["no-new-privileges"],
                "ReadonlyRootfs": True,
                "Tmpfs": {"/tmp": f"rw,noexec,nosuid,nodev,size={SCRATCH_MIB}m,mode=1777"},  # noqa: S108 - as above
                "PidsLimit": sandbox.PIDS,
                "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
                "LogConfig": {"Type": "json-file", "Config": {"max-size": f"{sandbox.LOG_MIB}m", "max-file": "2"}},
                "RestartPolicy": {"Name": "no"},
                "Binds": self._binds(spec),
            },
        }

    def image_id(self) -> str:
        """Return the id of the image that containers are started from now, ``""`` where there is none."""
        image = self._engine.image(self._settings.platform_image)
        return str(image["Id"]) if image else ""

    def begin(self, container: str, spec: PlatformSpec) -> None:
        """Start a container that was created, and give it its settings.

        A container whose starter dies in between gets no settings, and ends by itself.
        """
        needed, withheld = NEEDED[spec.kind], WITHHELD[spec.kind]
        given = {
            name: value for name, value in self._environment.items() if needed.fullmatch(name) and name not in withheld
        }
        with self._engine.conversation(container) as conversation:
            self._engine.start(container)
            conversation.say(json.dumps(given) + "\n")

    def _check(self, spec: PlatformSpec) -> None:
        name = self._settings.platform_image
        image = self._engine.image(name)
        if image is None:
            raise DeploymentError(
                f"BRINERY_PLATFORM_IMAGE: the Docker engine has no image {name}; build or pull it first.", id=spec.id
            )
        if image["Config"].get("User", "").partition(":")[0] in ROOTS:
            raise DeploymentError(
                f"BRINERY_PLATFORM_IMAGE: the image {name} runs as root; give it a user of its own (USER in its "
                "Dockerfile).",
                id=spec.id,
            )
        if spec.kind == "forwarder" and urlsplit(self._settings.redis).scheme == "unix":
            raise DeploymentError(
                "BRINERY_PLATFORM_IMAGE needs a Redis that containers reach: set BRINERY_REDIS_URL to redis://….",
                id=spec.id,
            )

    def _binds(self, spec: PlatformSpec) -> list[str]:
        """Return what of the home a container sees: forwarders a folder of objects, the proxy the key of permits."""
        home = self._settings.home
        if spec.kind == "egress":
            egress_token(home, "")  # makes the key; in place of a file that is not there, Docker makes a folder
            return [f"{self._on_host(home / 'signing.key')}:{home / 'signing.key'}:ro"]
        objects = urlsplit(self._settings.objects)
        if objects.scheme != "file":
            return []
        folder = Path(unquote(objects.path))
        folder.mkdir(parents=True, exist_ok=True)
        return [f"{self._on_host(folder)}:{folder}"]

    def _on_host(self, path: Path) -> str:
        """Return where the engine's machine has a file of ours: the same place, unless we are in a container."""
        own = own_container()
        facts = self._engine.inspect(own) if own else None
        if facts is None:
            return str(path)
        mounts = [mount for mount in facts["Mounts"] if path.is_relative_to(mount["Destination"])]
        if not mounts:
            raise DeploymentError(
                f"{path} is in no volume of the controller's container, so no other container can have it; mount a "
                "volume there."
            )
        nearest = max(mounts, key=lambda mount: len(mount["Destination"]))
        return str(Path(nearest["Source"]) / path.relative_to(nearest["Destination"]))


def own_container() -> str:
    """Return the id of the container that this process runs in, ``""`` outside of any.

    Docker mounts three files of each container's own folder into it, whatever network and control groups it has.
    """
    found = re.search(r"/containers/([0-9a-f]{64})/(?:hostname|hosts|resolv\.conf) ", MOUNTS.read_text())
    return found[1] if found else ""
