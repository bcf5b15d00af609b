"""Environments as images: what a bundle needs, installed on a base in a container, and committed once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from brinery.errors import InvalidRequestError
from brinery_platform.environments import Environments, Ground
from brinery_platform.images.bases import Bases
from brinery_platform.images.workshop import Workshop
from brinery_platform.runtimes import detached
from brinery_platform.runtimes.docker.bundles import ENVIRONMENT_IMAGES, environment_image
from brinery_platform.runtimes.docker.engine import Engine
from brinery_platform.runtimes.docker.network import WorkerNetwork
from brinery_platform.uv_tool import Emit

if TYPE_CHECKING:
    from brinery_platform.settings import Settings


def open_environments(settings: Settings, index_environment: Mapping[str, str]) -> ImageEnvironments:
    """Return the environments of the engine that the runtime ``docker`` uses."""
    engine, mark = Engine(), detached.home_mark(settings.home)
    network = WorkerNetwork(engine, mark, settings.worker_network)
    return ImageEnvironments(
        settings.home,
        index_environment,
        engine=engine,
        bases=Bases(engine, mark, settings.base_image),
        workshop=Workshop(engine, mark, network, index_environment),
    )


class ImageEnvironments(Environments):
    """The environments of a Docker engine.

    Args:
        home: The platform's home.
        index_environment: The variables that say where packages come from; see `settings.index_environment`.
        engine: The engine.
        bases: What environments are built upon.
        workshop: Where they are built.
    """

    def __init__(
        self,
        home: Path,
        index_environment: Mapping[str, str],
        *,
        engine: Engine,
        bases: Bases,
        workshop: Workshop,
    ) -> None:
        super().__init__(home, index_environment)
        self._engine = engine
        self._bases = bases
        self._workshop = workshop
        self._mark = detached.home_mark(home)

    def close(self) -> None:
        """Close the connections to the engine."""
        self._engine.close()

    def is_ready(self, environment_id: str) -> bool:
        """Return whether an environment has its image."""
        return self._engine.image(environment_image(environment_id)) is not None

    def bootstrap(self, minor: str, emit: Emit) -> None:
        """Make a base image with the Python of a minor version, unless the same one is there already.

        Raises:
            InvalidRequestError: This machine lacks that Python, or the image named as source cannot be a base.
            DeploymentError: It cannot be made.
        """
        python = self._interpreter(minor)[0] if self._bases.of_machine else ""
        with self._locked(f"base-{minor}", emit):
            self._bases.bootstrap(python, emit)

    def _ground(self, minor: str, emit: Emit) -> Ground:
        """Return the base image, made where it is missing."""
        base = self._bases.find(minor)
        if base is None:
            self.bootstrap(minor, emit)
            base = self._bases.find(minor)
        if base is None:
            raise InvalidRequestError(
                f"The image that BRINERY_BASE_IMAGE names has no Python {minor}; pack the bundle with the Python that "
                "it has, or name an image with this one.",
                python=minor,
            )
        return Ground(python=base.id, python_version=base.python_version, identity=base.name)

    def _resolve(self, requirements: Sequence[str], ground: Ground, emit: Emit) -> str:
        # In a container too: to learn what a source package needs, uv runs the package's own code.
        self._workshop.clear()
        asked = hashlib.sha256("\n".join([ground.identity, *requirements]).encode()).hexdigest()[:16]
        with self._locked(f"resolve-{asked}", emit):
            return self._workshop.resolve(f"brinery-{self._mark}-resolve-{asked}", ground.python, requirements, emit)

    def _make(self, environment_id: str, ground: Ground, lock: str, emit: Emit) -> None:
        self._workshop.clear()
        name = f"brinery-{self._mark}-build-{environment_id}"
        image = (ENVIRONMENT_IMAGES, environment_id)
        self._workshop.install(name, ground.python, lock, emit, image=image, environment_id=environment_id)
