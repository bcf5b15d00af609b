"""What a bundle needs to run, by hash: a virtual environment built once from its lock, and never changed again.

What was asked for (`environment_key`) is resolved to a lock of exact versions; the lock, the Python and the machine's
architecture are the environment's id. Two bundles whose requirements resolve alike thus share one environment.
"""

from __future__ import annotations

import compileall
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from brinery.errors import DeploymentError, InvalidRequestError
from brinery.spec import BundleManifest, ImageSpec
from brinery_platform.uv_tool import Emit, UvTool

MACHINE: Final = platform.machine()
WORKER_REQUIREMENTS: Final = ("annotated-types>=0.6", "fastjsonschema>=2.21", "flask>=3.1,<4", "gunicorn>=23")
"""What the worker runtime imports, cloudpickle aside (`worker_requirements`)."""
WORKER_PACKAGES: Final = ("brinery", "brinery_worker")
READY_MARKER: Final = ".brinery-ready"
PLATFORM_PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class BuiltEnvironment:
    """A finished build.

    Args:
        environment_id: Names the environment in `Environments.path`.
        lock: Exact versions, in the format of a requirements file.
    """

    environment_id: str
    lock: str


@dataclass(frozen=True)
class Ground:
    """What environments of one Python are built upon.

    Args:
        python: The interpreter: its path, or what else finds it where environments are built.
        python_version: Its full version.
        identity: What the environment's id depends on; another identity is another environment.
    """

    python: str
    python_version: str
    identity: str


def worker_requirements(manifest: BundleManifest) -> list[str]:
    """Return what the worker itself needs in order to open this bundle.

    A pickle is read by the same major of cloudpickle, no older than the one that wrote it.

    Raises:
        InvalidRequestError: The manifest names no version of cloudpickle.
    """
    match = re.fullmatch(r"(\d+)(\.\d+)*", manifest.cloudpickle)
    if match is None:
        raise InvalidRequestError(f"{manifest.cloudpickle!r} is no version of cloudpickle; pack the bundle again.")
    return [*WORKER_REQUIREMENTS, f"cloudpickle>={manifest.cloudpickle},<{int(match[1]) + 1}"]


def user_requirements(manifest: BundleManifest) -> list[str]:
    """Return the bundle's requirement lines in one order and spelling, comments left out.

    Raises:
        InvalidRequestError: A line is an option, or names a file or a variable of the platform's machine.
    """
    lines = set()
    for line in manifest.requirements:
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        text = re.sub(r"[ \t]+", " ", text)
        if not text:
            continue
        if text.startswith("-") or len(text.splitlines()) > 1:
            raise InvalidRequestError(
                f"Requirement {line!r} is not a single package: give one package in each entry, and no options; "
                "indexes are chosen by whoever runs the platform.",
                requirement=line,
            )
        if text.startswith((".", "/", "~")) or "file:" in text.lower() or "${" in text or text.endswith("\\"):
            raise InvalidRequestError(
                f"Requirement {line!r} names something on the platform's own machine: give a package of an index, or "
                "an https address. Your own modules travel in the bundle and need no requirement.",
                requirement=line,
            )
        lines.add(text)
    return sorted(lines)


def environment_key(manifest: BundleManifest, *, architecture: str = MACHINE) -> str:
    """Return the hash of what a bundle asks for; equal keys need no second resolution.

    What an image's name means is looked up anew at each deployment, so its key is another one each time.

    Args:
        manifest: The bundle's.
        architecture: The machine's, as `platform.machine` says it.

    Returns:
        40 hex digits.

    Raises:
        InvalidRequestError: The requirements cannot be taken; the text names the line.
    """
    if manifest.image is not None:
        reference = manifest.image.reference
        named = reference if is_fixed(manifest.image) else f"{reference} {secrets.token_hex(16)}"
        return hashlib.sha256(f"image {named}".encode()).hexdigest()[:40]
    asked = {
        "requirements": user_requirements(manifest),
        "worker": worker_requirements(manifest),
        "python": _minor(manifest),
        "architecture": architecture,
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:40]


def is_fixed(image: ImageSpec) -> bool:
    """Return whether an image is named by its id or a digest, which can never mean another one."""
    return re.fullmatch(r"(.*@)?sha256:[0-9a-f]{64}", image.reference) is not None


class Environments:
    """The virtual environments of this machine, under ``<home>/environments``.

    Args:
        home: The platform's home.
        index_environment: The variables that say where packages come from; see `settings.index_environment`.
    """

    def __init__(self, home: Path, index_environment: Mapping[str, str]) -> None:
        self._folder = home / "environments"
        self._runtimes = home / "worker-runtime"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._uv = UvTool(index_environment, cache=home / "cache" / "uv", folder=self._folder)

    def path(self, environment_id: str) -> Path:
        """Return the folder of an environment, built or not; its interpreter is ``bin/python``."""
        return self._folder / environment_id

    def is_ready(self, environment_id: str) -> bool:
        """Return whether an environment is built and its interpreter is still there."""
        path = self.path(environment_id)
        return (path / READY_MARKER).is_file() and (path / "bin" / "python").exists()

    def python_versions(self) -> list[str]:
        """Return the minor versions of Python that bundles can use here, such as ``["3.11", "3.12"]``."""
        found = {PLATFORM_PYTHON, *self._uv.python_versions()}
        return sorted(found, key=lambda minor: [int(part) for part in minor.split(".")])

    def build(self, manifest: BundleManifest, emit: Emit, *, lock: str | None = None) -> BuiltEnvironment:
        """Build what a bundle needs, unless it is there already.

        Any number of builds of one environment, in any number of processes, build it once. A build that was killed
        leaves a folder without its marker, which the next one removes. An image is found or fetched, and nothing built.

        Args:
            manifest: The bundle's.
            emit: Takes each line of output.
            lock: Exact versions of an earlier build; they are then not resolved anew.

        Raises:
            InvalidRequestError: The requirements cannot be taken, or this machine lacks the Python.
            DeploymentError: They cannot be resolved or installed; the text has uv's own words.
        """
        if manifest.image is not None:
            return self._find_image(manifest.image, lock, emit)
        ground = self._ground(_minor(manifest), emit)
        if lock is None:
            asked = [*user_requirements(manifest), *worker_requirements(manifest)]
            emit(f"Resolving the requirements for Python {ground.python_version}")
            lock = self._resolve(asked, ground, emit)
        environment_id = _environment_id(lock, ground.identity)
        if not self.is_ready(environment_id):
            with self._locked(environment_id, emit):
                if not self.is_ready(environment_id):  # else another build made it in the meantime
                    self._make(environment_id, ground, lock, emit)
        emit(f"Environment {environment_id} is ready")
        return BuiltEnvironment(environment_id, lock)

    # ------------------------------------------------------- what differs where an environment is no virtual one
    def _find_image(self, image: ImageSpec, lock: str | None, emit: Emit) -> BuiltEnvironment:  # noqa: ARG002 - refused
        raise InvalidRequestError(
            f"The image {image.reference} needs containers, and workers are plain processes here; start the platform "
            "with BRINERY_RUNTIME=docker on a machine with a Docker engine."
        )

    def _ground(self, minor: str, emit: Emit) -> Ground:  # noqa: ARG002 - the interpreter is there, or it is refused
        path, version = self._interpreter(minor)
        return Ground(path, version, version)

    def _resolve(self, requirements: Sequence[str], ground: Ground, emit: Emit) -> str:
        return self._uv.resolve(requirements, ground.python, emit)

    def _make(self, environment_id: str, ground: Ground, lock: str, emit: Emit) -> None:
        # Built in its final place, for an environment cannot be moved; the marker says that it is whole.
        path = self.path(environment_id)
        _remove(path)
        try:
            self._uv.make_environment(path, ground.python, emit)
            self._uv.install(path / "bin" / "python", lock, emit)
        except DeploymentError:
            _remove(path)
            raise
        _make_read_only(path)
        marker = path / READY_MARKER
        marker.write_text(json.dumps({"python": ground.python, "built_at": time.time()}))
        marker.chmod(0o400)
        path.chmod(0o500)

    def _interpreter(self, minor: str) -> tuple[str, str]:
        """Return the path and the full version of this machine's interpreter of a minor version."""
        if minor == PLATFORM_PYTHON:
            return sys.executable, platform.python_version()
        found = self._uv.find_python(minor)
        if found is None:
            raise InvalidRequestError(
                f"Python {minor} isn't on this machine; this platform has {', '.join(self.python_versions())}. Pack "
                "the bundle with one of these, or install that Python here.",
                python=minor,
            )
        return found

    @contextlib.contextmanager
    def _locked(self, name: str, emit: Emit) -> Iterator[None]:
        # The kernel lets go of the lock when its process dies, however it dies.
        with (self._folder / f".{name}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                emit("Waiting for another build of the same environment")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # ------------------------------------------------------------------------------------------- the worker's code
    def worker_runtime_path(self) -> Path:
        """Return a folder that holds the worker's own packages and nothing else, for a worker's ``PYTHONPATH``.

        The platform's own ``site-packages`` would hide the versions of the user's environment.

        Raises:
            DeploymentError: The worker's packages are not installed beside the platform.
        """
        return self._worker_runtime

    @cached_property
    def _worker_runtime(self) -> Path:
        sources = {name: _package_files(name) for name in WORKER_PACKAGES}
        digest = hashlib.sha256()
        for name, files in sources.items():
            for relative, content in files.items():
                digest.update(f"{name}/{relative}\0{len(content)}\0".encode() + content)
        target = self._runtimes / digest.hexdigest()[:16]
        if target.is_dir():
            return target
        partial = self._runtimes / f".{target.name}.{os.getpid()}"
        _remove(partial)
        for name, files in sources.items():
            for relative, content in files.items():
                file = partial / name / relative
                file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                file.write_bytes(content)
        # Paths as they will be after the renaming, so that tracebacks and the bytecode agree on them.
        compileall.compile_dir(partial, quiet=1, stripdir=str(partial), prependdir=str(target))
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            _remove(partial)  # another process made the same one at the same moment
        return target


def _minor(manifest: BundleManifest) -> str:
    match = re.match(r"(\d+\.\d+)(\.|$)", manifest.python)
    if match is None:
        raise InvalidRequestError(f"{manifest.python!r} is no version of Python; pack the bundle again.")
    return match[1]


def _environment_id(lock: str, ground: str) -> str:
    return hashlib.sha256(f"{lock}\0{ground}\0{MACHINE}".encode()).hexdigest()[:16]


def _package_files(name: str) -> dict[str, bytes]:
    """Return the files of an installed package by their path in it, in one order."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise DeploymentError(f"The package {name!r} is not installed beside the platform; install brinery again.")
    root = Path(next(iter(spec.submodule_search_locations)))
    files = (file for file in root.rglob("*") if file.suffix in {".py", ".typed"})
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(files)}


def _make_read_only(path: Path) -> None:
    """Take the right to write away below a folder: a worker of this user then changes it only on purpose."""
    for parent, folders, files in os.walk(path):
        for name in (*folders, *files):
            entry = Path(parent, name)
            if not entry.is_symlink():
                entry.chmod(stat.S_IMODE(entry.stat().st_mode) & ~0o222)


def _remove(path: Path) -> None:
    """Remove a folder, a read-only one too; one that is not there is no error."""
    for folder, _, _ in os.walk(path):
        Path(folder).chmod(0o700)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
