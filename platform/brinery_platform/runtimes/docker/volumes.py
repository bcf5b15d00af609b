"""Named volumes: what of an owner's outlives workers and versions. Only `Volumes.remove` ever removes one."""

from __future__ import annotations

import fcntl
import hashlib
import io
import tarfile
import threading
from dataclasses import dataclass
from pathlib import Path

from brinery.errors import ConflictError, NotFoundError
from brinery_platform.runtimes.docker import labels
from brinery_platform.runtimes.docker.engine import Engine, Facts


@dataclass(frozen=True, kw_only=True)
class Volume:
    """One volume of an owner's.

    Args:
        owner: Whose it is.
        name: What they call it.
        full_name: What the engine calls it.
        created_at: As the engine says it, ISO 8601.
        containers: How many use it, ended ones included.
    """

    owner: str
    name: str
    full_name: str
    created_at: str
    containers: int


class Volumes:
    """The named volumes of a home.

    Args:
        engine: Where they are.
        mark: See `labels.HOME`.
        lock_file: Held while one is made, against other processes of the home.
    """

    def __init__(self, engine: Engine, mark: str, lock_file: Path) -> None:
        self._engine = engine
        self._mark = mark
        self._lock_file = lock_file
        self._lock = threading.Lock()
        self._prepared: set[tuple[str, str]] = set()

    def ensure(self, owner: str, name: str, *, image: str, place: str, user: str) -> str:
        """Return the engine's name of an owner's volume; make it where it is missing, and writable for a user.

        Args:
            owner: Whose it is.
            name: What they call it.
            image: What is there in this image is copied into a new volume, as Docker does it.
            place: Where it will be in the container.
            user: ``uid:gid`` that shall own the volume's own folder.
        """
        full_name = self.full_name(owner, name)
        with self._lock:
            if (full_name, user) not in self._prepared or self._facts(full_name) is None:
                with self._lock_file.open("w") as file:
                    fcntl.flock(file, fcntl.LOCK_EX)
                    self._prepare(full_name, owner, name, image=image, place=place, user=user)
                self._prepared.add((full_name, user))
        return full_name

    def full_name(self, owner: str, name: str) -> str:
        """Return what the engine calls a volume."""
        return f"brinery-{self._mark}-{hashlib.sha256(owner.encode()).hexdigest()[:12]}-{name}"

    def list(self, *, owner: str | None = None, name: str | None = None) -> list[Volume]:
        """Return this home's volumes, all or those of one owner or of one name."""
        filters = {"label": [f"{labels.HOME}={self._mark}", f"{labels.KIND}=volume"]}
        found: list[Facts] = (self._engine.ask(lambda client: client.volumes(filters)) or {}).get("Volumes") or []
        mounts = [mount for one in self._engine.containers({}, ended_too=True) for mount in one.get("Mounts", [])]
        used = [str(mount.get("Name", "")) for mount in mounts]
        volumes = [
            Volume(
                owner=facts["Labels"].get(labels.OWNER, ""),
                name=facts["Labels"].get(labels.NAME, ""),
                full_name=facts["Name"],
                created_at=facts.get("CreatedAt", ""),
                containers=used.count(facts["Name"]),
            )
            for facts in found
        ]
        wanted = [one for one in volumes if owner in {None, one.owner} and name in {None, one.name}]
        return sorted(wanted, key=lambda one: (one.owner, one.name))

    def remove(self, owner: str, name: str) -> None:
        """Remove a volume with all that is in it.

        Raises:
            NotFoundError: There is none of that name.
            ConflictError: A container uses it.
        """
        full_name = self.full_name(owner, name)
        self._engine.remove(self._container(full_name))  # one that a killed controller has left
        if self._facts(full_name) is None:
            raise NotFoundError(f"{owner!r} has no volume {name!r}; `brinery volumes list` shows all.", volume=name)
        try:
            self._engine.ask(lambda client: client.remove_volume(full_name) or True)
        except ConflictError:
            raise ConflictError(
                f"Volume {name!r} is in use: workers of an endpoint have it. Delete the endpoint (`brinery delete`) "
                "or deploy it without the volume, and try again when they have ended.",
                volume=name,
            ) from None

    def _facts(self, full_name: str) -> Facts | None:
        facts: Facts | None = self._engine.ask(lambda client: client.inspect_volume(full_name))
        return facts

    def _prepare(self, full_name: str, owner: str, name: str, *, image: str, place: str, user: str) -> None:
        """Make a volume, and give its folder to a user: a fresh one is root's."""
        whose = {labels.HOME: self._mark, labels.KIND: "volume"}
        described = {**whose, labels.OWNER: owner, labels.NAME: name}
        self._engine.ask(lambda client: client.create_volume(full_name, labels=described))  # is there: left as it is
        # A container that never runs, in which the engine unpacks one folder: the image need not have a `chown`.
        config = {
            "Image": image,
            "Entrypoint": ["none"],
            "Labels": whose,
            "NetworkDisabled": True,
            "HostConfig": {"Binds": [f"{full_name}:{place}"]},
        }
        helper = self._container(full_name)
        self._engine.remove(helper)
        self._engine.create(helper, config)
        try:
            folder = tarfile.TarInfo(place.lstrip("/"))
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            folder.uid, folder.gid = (int(part) for part in user.split(":"))
            archive = io.BytesIO()
            with tarfile.open(fileobj=archive, mode="w") as tar:
                tar.addfile(folder)
            archive.seek(0)
            self._engine.put(helper, "/", archive)
        finally:
            self._engine.remove(helper)

    @staticmethod
    def _container(full_name: str) -> str:
        return f"{full_name}-volume"
