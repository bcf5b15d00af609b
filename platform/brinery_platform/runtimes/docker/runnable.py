"""Containers of images that serve by themselves: the sandbox of a worker around a program that is not ours."""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from brinery.checks import read_volume
from brinery.errors import DeploymentError
from brinery.spec import ImageSpec
from brinery_platform.runtimes.base import WorkerSpec
from brinery_platform.runtimes.docker import labels, sandbox
from brinery_platform.runtimes.docker.engine import Engine, Facts
from brinery_platform.runtimes.docker.users import file_text, user_of
from brinery_platform.runtimes.docker.volumes import Volumes

TMP: Final = "/tmp"  # noqa: S108 - the container's own
STOP_SECONDS: Final = 3.0
"""What an image's program may take to end. Many never heed SIGTERM, and its calls were waited for by who sent them."""
_MIB: Final = 1024 * 1024
_MAX_ARCHIVE_BYTES: Final = 1024 * 1024


class RunnableImages:
    """Describes the containers of images to the engine.

    Args:
        engine: The engine.
        mark: See `labels.HOME`.
        volumes: Their named volumes.
        host_folders: Folders of the host below which theirs may lie; see `Settings.host_volumes`.
    """

    def __init__(self, engine: Engine, mark: str, volumes: Volumes, host_folders: Sequence[str]) -> None:
        self._engine = engine
        self._mark = mark
        self._volumes = volumes
        self._host_folders = host_folders
        self._users: dict[tuple[str, str], str] = {}

    def config(self, spec: WorkerSpec, image: ImageSpec) -> Facts:
        """Return the body that creates a worker's container, but for its labels and its place in the network.

        Args:
            spec: The worker.
            image: Its image.

        Raises:
            DeploymentError: The image is gone from this engine, or its user or a volume cannot be had.
        """
        image_id = f"sha256:{spec.environment_id}"
        facts = self._engine.image(image_id)
        if facts is None:
            raise DeploymentError(
                f"The image {image.reference} of this version ({image_id[:19]}) is no longer in this Docker engine; "
                "deploy the endpoint again.",
                id=spec.id,
            )
        own: Facts = facts["Config"] or {}
        user = self._user(image_id, own.get("User") or "", image.user)
        host = sandbox.limits(memory_mib=spec.memory_mib, cpus=spec.cpus, gpus=spec.gpus, read_only=True)
        binds = [self._bind(volume, spec.owner, image_id, user) for volume in image.volumes]
        taken = {read_volume(volume)[1] for volume in image.volumes}
        # What the image calls a volume would else be a folder of the host's disk, without a limit.
        scratch = {TMP, *image.scratch, *(posixpath.normpath(place) for place in own.get("Volumes") or {})} - taken
        host["Tmpfs"] = dict.fromkeys(sorted(scratch), host["Tmpfs"][TMP])
        host |= {"ShmSize": image.shm_mib * _MIB, "Binds": binds}
        env = {"PORT": str(image.port), "HOME": _home(own), **spec.env}
        config: Facts = {
            "Image": image_id,
            "Env": [f"{name}={value}" for name, value in env.items()],
            "User": user,
            "Healthcheck": {"Test": ["NONE"]},  # the platform asks the ready route itself
            "HostConfig": host,
        }
        return config | ({"Entrypoint": image.command} if image.command else {})

    def _user(self, image_id: str, own: str, chosen: str) -> str:
        key = (image_id, chosen or own)
        if key not in self._users:
            with self._files(image_id) as read:
                self._users[key] = user_of(own, chosen, read)
        return self._users[key]

    @contextlib.contextmanager
    def _files(self, image_id: str) -> Iterator[_Files]:
        """Have the files of an image, out of a container that never runs and is made with the first question."""
        files = _Files(self._engine, self._mark, image_id)
        try:
            yield files
        finally:
            files.close()

    def _bind(self, volume: str, owner: str, image_id: str, user: str) -> str:
        source, place, read_only = read_volume(volume)
        if source.startswith("/"):
            source = self._host_folder(source)
        else:
            source = self._volumes.ensure(owner, source, image=image_id, place=place, user=user)
        return f"{source}:{place}:{'ro' if read_only else 'rw'}"

    def _host_folder(self, source: str) -> str:
        """Return where a folder of the host really is: that is what was checked, and what the engine gets."""
        allowed = [os.path.realpath(folder) for folder in self._host_folders]
        real = os.path.realpath(source)  # a link would lead out of what is allowed
        if not any(real == folder or real.startswith(f"{folder.rstrip('/')}/") for folder in allowed):
            raise DeploymentError(
                f"Volume {source!r} is a folder of the host, which BRINERY_HOST_VOLUMES does not allow; use a named "
                "volume, such as 'data:/data', or ask whoever runs the platform."
            )
        if not Path(real).is_dir():
            raise DeploymentError(f"Volume {source!r}: the host has no such folder.")
        return real


class _Files:
    """Reads files of an image; see `RunnableImages._files`."""

    def __init__(self, engine: Engine, mark: str, image_id: str) -> None:
        self._engine = engine
        self._mark = mark
        self._image_id = image_id
        self._container = ""

    def __call__(self, path: str) -> str:
        if not self._container:
            name = f"brinery-{self._mark}-look-{self._image_id.removeprefix('sha256:')[:16]}-{os.urandom(4).hex()}"
            described = {labels.HOME: self._mark, labels.KIND: "volume"}
            config = {"Image": self._image_id, "Entrypoint": ["none"], "Labels": described, "NetworkDisabled": True}
            self._container = self._engine.create(name, config)
        found = self._engine.ask(lambda client: client.get_archive(self._container, path))
        if found is None:
            return ""
        data = b""
        with contextlib.closing(found[0]) as pieces:
            for piece in pieces:
                data += piece
                if len(data) > _MAX_ARCHIVE_BYTES:  # a folder in its place, say, or a file made for filling memories
                    return ""
        return file_text(data)

    def close(self) -> None:
        """Remove the container."""
        if self._container:
            self._engine.remove(self._container)


def _home(own: Facts) -> str:
    """Return the home that the image says, else a folder that can be written."""
    said = dict(variable.partition("=")[::2] for variable in own.get("Env") or [])
    return said.get("HOME") or TMP
