"""The image that a worker starts from: its environment's image, with the worker's own code and the bundle on top."""

from __future__ import annotations

import contextlib
import fcntl
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from brinery.errors import DeploymentError
from brinery_platform.runtimes.docker import labels, sandbox
from brinery_platform.runtimes.docker.engine import Engine

ENVIRONMENT_IMAGES: Final = "brinery/env"
BUNDLE_IMAGES: Final = "brinery/bundle"


def environment_image(environment_id: str) -> str:
    """Return the name of an environment's image."""
    return f"{ENVIRONMENT_IMAGES}:{environment_id}"


class BundleImages:
    """The bundle images of a home; each is made once, in the time that copying the bundle takes.

    Args:
        engine: The engine.
        mark: See `labels.HOME`.
        lock_file: Held while one is made, against other processes of the home.
    """

    def __init__(self, engine: Engine, mark: str, lock_file: Path) -> None:
        self._engine = engine
        self._mark = mark
        self._lock_file = lock_file
        self._lock = threading.Lock()

    def ensure(self, environment_id: str, bundle: Path, sha256: str, worker_code: Path) -> str:
        """Return the name of the image that serves a bundle; make it where it is missing.

        Args:
            environment_id: What it is built upon.
            bundle: The bundle's file, verified.
            sha256: Its digest.
            worker_code: Folder with the worker's own packages, named after their content.

        Raises:
            DeploymentError: The environment has no image here.
        """
        tag = f"{sha256}-{environment_id}-{worker_code.name}"
        name = f"{BUNDLE_IMAGES}:{tag}"
        if self._engine.image(name) is not None:
            return name
        with self._locked():
            if self._engine.image(name) is None:  # else another thread made it in the meantime
                self._make(tag, environment_id, bundle, worker_code)
        return name

    def _make(self, tag: str, environment_id: str, bundle: Path, worker_code: Path) -> None:
        base = environment_image(environment_id)
        if self._engine.image(base) is None:
            raise DeploymentError(
                f"Environment {environment_id} has no image in this Docker engine; deploy the endpoint again.",
                environment_id=environment_id,
            )
        whose = {labels.HOME: self._mark, labels.KIND: "layer"}
        for left in self._engine.containers(whose, ended_too=True):  # by one that was killed: we hold the lock
            self._engine.remove(left["Id"])
        # A container that never runs: the engine copies nothing into a read-only one, such as the worker's own, and its
        # classic builder takes 0.19 s for a layer that is made so in 0.11 s.
        config = {"Image": base, "Labels": whose, "NetworkDisabled": True}
        container = self._engine.create(f"brinery-{self._mark}-layer", config)
        try:
            with tempfile.TemporaryFile() as archive:
                _pack(archive, bundle, worker_code)
                archive.seek(0)
                self._engine.put(container, "/", archive)
            described = {labels.KIND: "bundle", labels.ENVIRONMENT: environment_id}
            self._engine.commit(container, BUNDLE_IMAGES, tag, {"Labels": whose | described})
        finally:
            self._engine.remove(container)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock, self._lock_file.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _pack(target: IO[bytes], bundle: Path, worker_code: Path) -> None:
    """Write a layer: owned by root, and readable for everybody."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mode = 0o755 if entry.isdir() else 0o644
        return entry

    with tarfile.open(fileobj=target, mode="w") as archive:
        archive.add(worker_code, sandbox.WORKER_CODE.lstrip("/"), filter=plain)
        archive.add(bundle, sandbox.BUNDLE.lstrip("/"), filter=plain)
