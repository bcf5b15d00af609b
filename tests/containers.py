"""A real Docker engine for tests, and clearing up what a home of a test's has left in it."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from brinery.errors import UnavailableError
from brinery_platform.runtimes.detached import home_mark
from brinery_platform.runtimes.docker import labels
from brinery_platform.runtimes.docker.engine import Engine
from brinery_platform.runtimes.docker.volumes import Volumes

HOW = "no Docker engine answers; start one with scripts/docker-engine (as root, on Debian or Ubuntu)"


def needs_engine() -> None:
    """Skip the test where there is no engine; in CI that fails it."""
    engine = Engine()
    try:
        engine.version()
    except UnavailableError as error:
        pytest.skip(f"{HOW}: {error.message}")
    finally:
        engine.close()


@contextlib.contextmanager
def cleared(home: Path) -> Iterator[Engine]:
    """Have an engine; in the end nothing is left in it that carries the home's mark."""
    needs_engine()
    engine = Engine()
    whose = {labels.HOME: home_mark(home)}
    try:
        yield engine
    finally:
        for container in engine.containers(whose, ended_too=True):
            engine.remove(container["Id"])
        for kind in ("bundle", "environment", "base"):
            for image in engine.images({**whose, labels.KIND: kind}):
                for name in image["RepoTags"] or [image["Id"]]:
                    engine.remove_image(name)
        for image in engine.ask(lambda client: client.images(name="brinery/image")) or []:
            for name in image["RepoTags"] or []:
                if home_mark(home) in name:
                    engine.remove_image(name)
        kept = Volumes(engine, home_mark(home), home / "volumes.lock")
        for volume in kept.list():
            kept.remove(volume.owner, volume.name)
        for network in engine.networks(whose):
            engine.remove_network(network["Id"])
        left = [*engine.containers(whose, ended_too=True), *engine.networks(whose)]
        engine.close()
        assert not left


def processes_of(container_id: str) -> list[psutil.Process]:
    """Every process of this machine that runs in a container."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            if container_id in Path(f"/proc/{process.pid}/cgroup").read_text():
                found.append(process)
    return found


def everything_about(reference: str) -> str:
    """All that the engine tells of a container or an image, its history included."""
    told = docker("inspect", reference)
    if json.loads(told)[0].get("RootFS"):
        told += docker("history", "--no-trunc", "--format", "{{json .}}", reference)
    return told


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True, timeout=60).stdout
