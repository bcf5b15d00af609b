"""The images that users name: found or fetched once, and kept under a name of ours, whatever becomes of theirs."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from typing import Any, Final

from brinery.errors import DeploymentError
from brinery_platform.environments import BuiltEnvironment
from brinery_platform.runtimes.docker import labels
from brinery_platform.runtimes.docker.engine import Engine, Facts
from brinery_platform.uv_tool import Emit

KEPT: Final = "brinery/image"
"""Repository of the names that keep users' images: without a name, ``docker image prune`` would remove them."""
DOCKER_HUB: Final = "docker.io"
_ID: Final = re.compile(r"(sha256:)?[0-9a-f]{64}")
_PRIVATE: Final = frozenset({"bundle", "environment"})
_OURS: Final = re.compile(r"((index\.)?docker\.io/)?brinery/(base|env|bundle|image)([:@].*)?", re.IGNORECASE)
"""Names that only this platform gives. It finds its own images by them, so nothing is ever fetched under one."""


class References:
    """Users' images in an engine.

    Args:
        engine: The engine.
        mark: See `labels.HOME`.
        registries: Where images may be fetched from; see `Settings.registries`.
    """

    def __init__(self, engine: Engine, mark: str, registries: Sequence[str] = ()) -> None:
        self._engine = engine
        self._mark = mark
        self._registries = registries

    def find(self, reference: str, lock: str | None, emit: Emit) -> BuiltEnvironment:
        """Return what a name means now, fetched where the engine does not have it.

        Args:
            reference: Name and tag, digest or id.
            lock: What it meant when the version was made; that one is found instead.
            emit: Takes each line of output.

        Returns:
            The image's id without ``sha256:``, and what finds the same one again: its digest, or its id.

        Raises:
            DeploymentError: There is no such image, or it cannot be fetched, or it is no user's.
        """
        wanted = lock or reference
        facts = self._engine.image(wanted)
        if facts is None:
            facts = self._fetch(wanted, emit)
        if (facts["Config"].get("Labels") or {}).get(labels.KIND) in _PRIVATE:
            raise DeploymentError(f"The image {reference} is the platform's, with somebody's code in it; name another.")
        image_id = str(facts["Id"]).removeprefix("sha256:")
        self._engine.ask(lambda client: client.tag(facts["Id"], KEPT, self._tag(image_id)))
        emit(f"Image {reference} is {image_id[:12]}")
        return BuiltEnvironment(image_id, _again(facts, reference))

    def is_here(self, image_id: str) -> bool:
        """Return whether the engine has an image.

        Args:
            image_id: Without ``sha256:``.
        """
        return self._engine.image(f"sha256:{image_id}") is not None

    def prune(self, *, needed: Container[str]) -> list[str]:
        """Take our names off the images that no version needs; an image without another name goes with it.

        Args:
            needed: Ids of the images that versions of endpoints have, without ``sha256:``.

        Returns:
            The names that were taken off.
        """
        removed = []
        found: list[dict[str, Any]] = self._engine.ask(lambda client: client.images(name=KEPT)) or []
        for image in found:
            image_id = str(image["Id"]).removeprefix("sha256:")
            name = f"{KEPT}:{self._tag(image_id)}"
            free = name in (image["RepoTags"] or ()) and image_id not in needed
            if free and self._engine.remove_image(name):
                removed.append(name)
        return removed

    def _fetch(self, wanted: str, emit: Emit) -> Facts:
        if _ID.fullmatch(wanted):
            raise DeploymentError(f"There is no image {wanted} in this platform's Docker engine; deploy one that is.")
        if _OURS.fullmatch(wanted):
            raise DeploymentError(f"The image {wanted} is not there, and images of this name are fetched from nowhere.")
        whole = _in_full(wanted)
        if self._registries and not any(f"{whole}/".startswith(f"{one}/") for one in self._registries):
            raise DeploymentError(
                f"The image {wanted} is not in this platform's Docker engine, and images are fetched from "
                f"{', '.join(self._registries)} only (BRINERY_IMAGE_REGISTRIES)."
            )
        emit(f"Fetching {wanted}")
        try:
            self._engine.pull(wanted, emit)
        except DeploymentError as error:
            said = error.message.removeprefix(f"The image {wanted} cannot be fetched: ")
            raise DeploymentError(
                f"The image {wanted} is not in this platform's Docker engine and cannot be fetched: {said}"
            ) from error
        facts = self._engine.image(wanted)
        if facts is None:
            raise DeploymentError(f"The image {wanted} was removed while it was fetched; deploy it again.")
        return facts

    def _tag(self, image_id: str) -> str:
        return f"{self._mark}-{image_id[:32]}"


def _in_full(reference: str) -> str:
    """Return a name with its registry in front, without tag and digest, as Docker reads it.

    What stands before the first slash is a registry if it can be no part of a path there: with a dot, a port or a
    capital letter, or ``localhost``.
    """
    path = re.sub(r":[^:/]*$", "", reference.partition("@")[0])
    first, slash, rest = path.partition("/")
    if not slash or not (re.search(r"[.:A-Z]", first) or first == "localhost"):
        first, rest = DOCKER_HUB, path
    registry = DOCKER_HUB if first.lower() == f"index.{DOCKER_HUB}" else first.lower()
    return f"{registry}/library/{rest}" if registry == DOCKER_HUB and "/" not in rest else f"{registry}/{rest}"


def _again(facts: Facts, reference: str) -> str:
    """Return what finds the same image again, also in another engine where it has a registry."""
    digests: list[str] = facts.get("RepoDigests") or []
    repository = reference.partition("@")[0]
    return next((one for one in digests if repository.startswith(one.partition("@")[0])), str(facts["Id"]))
