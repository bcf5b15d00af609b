"""Environments as images: what a bundle needs, installed on a base in a container, and committed once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from brinery.errors import InvalidRequestError
from brinery.spec import ImageSpec
from brinery_platform.environments import BuiltEnvironment, Environments, Ground
from brinery_platform.images.bases import Base, Bases
from brinery_platform.images.references import References
from brinery_platform.images.workshop import Workshop
from brinery_platform.runtimes import detached
from brinery_platform.runtimes.docker.bundles import ENVIRONMENT_IMAGES, environment_image
from brinery_platform.runtimes.docker.engine import Engine
from brinery_platform.runtimes.docker.network import WorkerNetwork
from brinery_platform.uv_tool import Emit

if TYPE_CHECKING:
    from brinery_platform.settings import Settings

IMAGE_ID_CHARS: Final = 64
"""An image's id; environments have shorter ones."""


def open_environments(
    settings: Settings, index_environment: Mapping[str, str], *, engine: Engine | None = None
) -> ImageEnvironments:
    """Return the environments of the engine that the runtime ``docker`` uses.

    Args:
        settings: This process's.
        index_environment: See `ImageEnvironments`.
        engine: The engine, with limits of its own; closed with what is returned.
    """
    engine, mark = engine or Engine(), detached.home_mark(settings.home)
    network = WorkerNetwork(engine, mark, settings.worker_network)
    return ImageEnvironments(
        settings.home,
        index_environment,
        engine=engine,
        bases=Bases(engine, mark, settings.base_image),
        workshop=Workshop(engine, mark, network, index_environment),
        references=References(engine, mark, settings.registries),
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
        references: References,
    ) -> None:
        super().__init__(home, index_environment)
        self._engine = engine
        self._bases = bases
        self._workshop = workshop
        self._mark = detached.home_mark(home)
        self._references = references

    def close(self) -> None:
        """Close the connections to the engine."""
        self._engine.close()

    def is_ready(self, environment_id: str) -> bool:
        """Return whether an environment, or a user's image, is in the engine."""
        if len(environment_id) == IMAGE_ID_CHARS:
            return self._references.is_here(environment_id)
        return self._engine.image(environment_image(environment_id)) is not None

    def bootstrap(self, minor: str, emit: Emit) -> None:
        """Make a base image of this machine's own Python, unless the same one is there already.

        Args:
            minor: Which Python, where it has several.
            emit: Takes each line of output; the last one says what builds use, if that is another base.

        Raises:
            InvalidRequestError: This machine lacks that Python.
            DeploymentError: It cannot be made.
        """
        with self._locked(f"base-{minor}", emit):
            made = self._bases.bootstrap(self._interpreter(minor)[0], emit)
        used = self._bases.find(minor)
        if used != made:
            name = used.name if used else "the image that BRINERY_BASE_IMAGE names"
            emit(f"Builds go on using {name}; BRINERY_BASE_IMAGE=machine makes them use {made.name}")

    def base(self, minor: str, emit: Emit) -> Base:
        """Return the base image of a minor version of Python, made where there is none.

        Args:
            minor: Wanted minor version.
            emit: Takes each line of output.

        Raises:
            InvalidRequestError: This machine lacks that Python, or the image named as source cannot be a base for it.
            DeploymentError: It cannot be made.
        """
        base = self._bases.find(minor)
        if base is None:
            with self._locked(f"base-{minor}", emit):
                if self._bases.find(minor) is None:  # else another build made it in the meantime
                    self._bases.make(minor, lambda: self._interpreter(minor)[0], emit)
            base = self._bases.find(minor)
        if base is None:
            raise InvalidRequestError(
                f"The image that BRINERY_BASE_IMAGE names has no Python {minor}; pack the bundle with the Python that "
                "it has, or name an image with this one.",
                python=minor,
            )
        return base

    def _find_image(self, image: ImageSpec, lock: str | None, emit: Emit) -> BuiltEnvironment:
        return self._references.find(image.reference, lock, emit)

    def _ground(self, minor: str, emit: Emit) -> Ground:
        base = self.base(minor, emit)
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
