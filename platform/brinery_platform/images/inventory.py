"""What images of ours an engine holds, and which of them nobody needs any more."""

from __future__ import annotations

import time
from collections.abc import Container
from dataclasses import dataclass

from brinery_platform.runtimes.docker import labels
from brinery_platform.runtimes.docker.engine import Engine, Facts

LEFT_SECONDS = 3600.0
"""A container for making a layer that is so old belongs to nobody: making one takes seconds."""
OURS = ("brinery/base:", "brinery/env:", "brinery/bundle:")
ORDER = ("bundle", "environment", "base")
"""Each kind is built upon the next one, so this is the order in which they can go."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image of ours.

    Args:
        id: Docker's.
        name: Repository and tag; ``""`` where another image has taken it over.
        kind: ``base``, ``environment`` or ``bundle``.
        environment_id: The environment that it is or holds, ``""`` for a base.
        python: A base's minor version of Python, ``""`` for others.
        bytes: Size, what it shares with others included.
        created_at: Seconds since the epoch.
        containers: How many use it, ended ones included.
        own: Whether this home has made it.
    """

    id: str
    name: str
    kind: str
    environment_id: str
    python: str
    bytes: int
    created_at: float
    containers: int
    own: bool


class Inventory:
    """The images of an engine, seen from one home.

    Args:
        engine: The engine.
        mark: See `labels.HOME`.
    """

    def __init__(self, engine: Engine, mark: str) -> None:
        self._engine = engine
        self._mark = mark

    def images(self) -> list[Image]:
        """Return all images of ours, those of other homes included: bases first, newest first."""
        used = [str(facts["ImageID"]) for facts in self._engine.containers({}, ended_too=True)]
        found = [
            _image(facts, used, self._mark) for facts in self._engine.images({labels.KIND: ""}) if not _is_users(facts)
        ]
        return sorted((one for one in found if one.kind in ORDER), key=lambda one: -ORDER.index(one.kind))

    def prune(self, *, needed: Container[str]) -> list[Image]:
        """Remove what this home has made and nobody needs, its network without workers included.

        A bundle's image goes when no worker runs from it: it is made again in the time that copying it takes. An
        environment's goes when no endpoint needs it. A base goes when no environment needs it and there is a newer
        one with the same minor version of Python.

        Args:
            needed: Ids of the environments that endpoints need.

        Returns:
            What was removed.
        """
        for left in self._engine.containers({labels.HOME: self._mark}, ended_too=True):
            kind, old = left["Labels"].get(labels.KIND), time.time() - left["Created"] > LEFT_SECONDS
            if (kind == "build" and left["State"] == "exited") or (kind in {"layer", "volume"} and old):
                self._engine.remove(left["Id"])
        removed = []
        for kind in ORDER:
            parents = {facts["ParentId"] for facts in self._engine.images({labels.KIND: ""})}
            images = [one for one in self.images() if one.kind == kind]
            newest = {one.python: one.id for one in reversed(images)}.values() if kind == "base" else ()
            for image in images:
                free = image.own and not image.containers and image.id not in {*newest, *parents}
                if kind == "environment" and image.environment_id in needed:
                    free = False
                if free and self._engine.remove_image(image.name or image.id):
                    removed.append(image)
        for network in self._engine.networks({labels.HOME: self._mark}):
            self._engine.remove_network(network["Id"])  # one that workers are connected to stays
        return removed


def _is_users(facts: Facts) -> bool:
    """Whether an image only has our labels from the base that its user built it upon."""
    names = facts.get("RepoTags") or ()
    return any(not name.startswith("<none>") for name in names) and not any(name.startswith(OURS) for name in names)


def _image(facts: Facts, used: list[str], mark: str) -> Image:
    marked = facts["Labels"]
    return Image(
        id=facts["Id"],
        name=next(iter(facts.get("RepoTags") or ()), ""),
        kind=marked[labels.KIND],
        environment_id=marked.get(labels.ENVIRONMENT, ""),
        python=".".join(marked.get(labels.PYTHON, "").split(".")[:2]) if marked[labels.KIND] == "base" else "",
        bytes=facts["Size"],
        created_at=float(facts["Created"]),
        containers=used.count(facts["Id"]),
        own=marked.get(labels.HOME) == mark,
    )
